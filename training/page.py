"""The report of a lap as one page for people: `LapReport.as_json` enters, HTML leaves.

Self-contained: no script, nothing fetched. All text is escaped on its way in, because names are strangers' input. Only
what is named here is shown, so nothing that a part may carry besides reaches a reader. Decides and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from nvr_rag.output import size
from training import markup, plots
from training.gate import MEASURE

Part = Mapping[str, Any]

HEADLINES = {
    "accept": "Accepted: the candidate is better, and waits to be promoted",
    "reject": "Rejected: what served before goes on serving",
    "not_enough_evidence": "Not enough evidence: nothing was changed",
    "dry_run": "Dry run: nothing was trained, nothing was changed",
    "failed": "Failed: nothing was changed",
}
PROMOTED = "Accepted: the candidate is better, and serves now"
VERDICTS = {"pass": "passed", "fail": "failed", "note": "note"}
PATHS = {"deployed": "As deployed", "dense": "Dense only"}
GROUPS = {"all": "all queries", "fresh": "fresh queries", "trained": "trained queries"}
GROUPS_EXPLAINED = (
    "Fresh queries have an answer that was not trained on: they show learning. All answers of trained queries were "
    "trained on: they show memory of the corpus."
)
REMOVALS = {
    "known_positive": "known to answer the query",
    "copy_of_positive": "copy of a text that answers it",
    "neighbour": "stands beside a positive",
    "rule": "scores too close to the positive: may answer it too",
    "copy_of_negative": "copy of another negative",
    "judged": "kept: said to be irrelevant",
    "mined": "kept: found by mining",
}
LEFT_OUT = {
    "contested": "people disagree",
    "lifted": "now judge a whole document",
    "gone": "left out: no longer there",
    "forbidden": "left out: not for everyone",
    "without_positive": "queries left out: nothing relevant",
}
SCORES = {
    "positive_scores": "positives",
    "negative_scores": "negatives",
    "differences": "positive minus negative",
}
QUANTILES = {"p05": "5 %", "p25": "25 %", "p50": "median", "p75": "75 %", "p95": "95 %"}


def render(report: Part) -> str:
    """The whole page. Parts that the report lacks leave no trace."""
    sections = (
        _head(report),
        _next_steps(report),
        _results(report),
        _changed(report.get("changes") or {}),
        _choice(report.get("choice") or {}),
        _data(report.get("data") or {}),
        _mining(report.get("mining") or {}, report.get("scores")),
        _training(report.get("training") or {}),
        _steps(report.get("steps") or ()),
    )
    title = markup.html(f"{report['collection']}: report of lap {report['run']}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{markup.STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n<footer>All of it for programs: report.json beside this file.</footer>\n</body>\n</html>\n"
    )


def _head(report: Part) -> str:
    outcome = str(report["outcome"])
    headline = PROMOTED if report.get("promoted") else HEADLINES.get(outcome, outcome)
    started, finished = (datetime.fromisoformat(report[name]) for name in ("started_at", "finished_at"))
    took = markup.duration((finished - started).total_seconds())
    when = f"{started:%Y-%m-%d %H:%M} {started.tzname() or ''}, took {took}"
    parts = [
        f"<h1>{markup.html(headline)}</h1>",
        f'<p class="soft">Collection <b>{markup.html(report["collection"])}</b>, lap {markup.code(report["run"])}, '
        f"{markup.html(when)}</p>",
        f"<p>{markup.html(report['error'])}</p>" if report.get("error") else "",
        _findings((report.get("decision") or {}).get("findings") or ()),
    ]
    return f'<header class="{markup.html(outcome)}">{"".join(parts)}</header>'


def _findings(findings: Sequence[Part]) -> str:
    rows = [
        f'<li class="{markup.html(one["verdict"])}"><b>{markup.html(VERDICTS.get(one["verdict"], ""))}</b>'
        f"<span>{markup.html(one['text'])}</span></li>"
        for one in findings
    ]
    return f'<ul class="findings">{"".join(rows)}</ul>' if rows else ""


def _next_steps(report: Part) -> str:
    steps: Sequence[Part] = report.get("next_steps") or ()
    title = "How to undo it" if report.get("promoted") else "What you can do"
    parts = (f"<p>{markup.html(one['words'])}</p><pre>{markup.code(one['command'])}</pre>" for one in steps)
    return markup.section(title, *parts)


def _results(report: Part) -> str:
    figures: Sequence[Part] = report.get("figures") or ()
    by_path = {path: [one for one in figures if one["path"] == path] for path in PATHS}
    sides = [_intervals(path, found) + _measures(found) for path, found in by_path.items() if found]
    explained = f'<p class="soft">{GROUPS_EXPLAINED}</p>' if sides else ""
    return markup.section("Before and candidate", markup.pair(*sides), explained, _latency(report.get("latency")))


def _intervals(path: str, figures: Sequence[Part]) -> str:
    title = f"{PATHS[path]}: mean {MEASURE} with its 95 % interval"
    rows = [
        plots.IntervalRow(
            label=f"{GROUPS[one['group']]} ({one['queries']:,})",
            base=(one["base"][MEASURE], *one["base_interval"]),
            candidate=(one["candidate"][MEASURE], *one["candidate_interval"]),
        )
        for one in figures
    ]
    return markup.figure(title, plots.interval_chart(rows, title=title, x_label=f"mean {MEASURE}"))


def _measures(figures: Sequence[Part]) -> str:
    """Every measure of both sides, group by group."""
    rows: list[Sequence[Any]] = []
    for one in figures:
        rows.append([f"{GROUPS[one['group']]} ({one['queries']:,})"])
        for name, base in one["base"].items():
            candidate = one["candidate"][name]
            rows.append([name, f"{base:.3f}", f"{candidate:.3f}", _signed(candidate - base)])
    return markup.table(("measure", "before", "candidate", "change"), rows)


def _latency(latency: Part | None) -> str:
    if not latency:
        return ""
    base, candidate = latency["base_ms"], latency["candidate_ms"]
    return f"<p>The median answer took {base:.1f} ms before and takes {candidate:.1f} ms with the candidate.</p>"


def _changed(changes: Part) -> str:
    if not changes:
        return ""
    title = f"Change of {MEASURE} by query"
    drawn = plots.difference_chart(
        changes["differences"],
        title=title,
        x_label="holdout queries, largest gain first",
        y_label=f"change of {MEASURE}",
    )
    tables = [
        markup.table(
            ("query", "before", "candidate"),
            [(markup.code(one["query"]), f"{one['base']:.3f}", f"{one['candidate']:.3f}") for one in changes[side]],
            caption=caption,
        )
        for side, caption in (("winners", "Largest gains"), ("losers", "Largest losses"))
    ]
    return markup.section("Winners and losers", markup.figure(title, drawn), markup.pair(*tables))


def _choice(choice: Part) -> str:
    if not choice:
        return ""
    best = _way(choice["mode"], choice["fusion"])
    rows = [(_way(one["mode"], one["fusion"]), f"{one['value']:.3f}") for one in choice["tried"]]
    rows = [(markup.Html(f"<b>{markup.html(way)} (chosen)</b>") if way == best else way, value) for way, value in rows]
    said = f"<p>The candidate answers by <b>{markup.html(best)}</b>, chosen on {choice['queries']:,} dev queries.</p>"
    return markup.section("How it answers", said, markup.table(("tried", f"mean {choice['measure']}"), rows))


def _way(mode: str, fusion: Part) -> str:
    if mode != "hybrid":
        return f"{mode} search"
    method = {"rrf": "reciprocal ranks", "weighted": "weighted scores"}.get(fusion["method"], fusion["method"])
    return f"hybrid search, {method}, dense {fusion['dense_weight']:g} to lexical {fusion['lexical_weight']:g}"


def _data(data: Part) -> str:
    splits = [(name, f"{count:,}") for name, count in (data.get("splits") or {}).items()]
    judgments = data.get("judgments") or {}
    origins: list[Sequence[str]] = []
    for split, found in ((split, found) for counts in judgments.values() for split, found in counts["origins"].items()):
        origins += [[f"for {split}"]] if found else []
        origins += [(name, f"{one['queries']:,}", f"{one['judgments']:,}") for name, one in found.items()]
    rest = [
        (words, *(f"{counts.get(name, 0):,}" for counts in judgments.values()))
        for name, words in LEFT_OUT.items()
        if any(counts.get(name) for counts in judgments.values())
    ]
    return markup.section(
        "Data",
        markup.pair(
            markup.table(("split", "judged queries"), splits)
            + markup.table(("judgments that need a word", *judgments), rest),
            markup.table(("said by", "queries", "judgments"), origins),
        ),
        markup.facts((f"sha256 of {name}", markup.code(digest)) for name, digest in (data.get("hashes") or {}).items()),
    )


def _mining(mining: Part, scores: Any) -> str:
    if not mining:
        return ""
    settings = mining["settings"]
    limit = {"margin-pos": f", margin {settings['margin']:g}", "perc-pos": f", ratio {settings['ratio']:g}"}
    facts = [
        ("rule", settings["rule"] + limit.get(settings["rule"], "")),
        ("pairs of query and positive", f"{mining['pairs']:,}"),
        ("candidates examined", f"{mining['examined']:,}"),
        ("could be negatives", f"{mining['kept']:,}"),
        ("became negatives", f"{sum(mining['emitted'].values()):,}"),
        ("pairs with fewer than wanted", f"{sum(mining['short'].values()):,}"),
    ]
    removed = [(REMOVALS.get(name, name), f"{count:,}") for name, count in mining["removed"].items()]
    title = "The teacher's scores of positives and negatives"
    drawn = plots.histogram(scores, title=title, x_label="score") if scores else ""
    return markup.section(
        "Mining of hard negatives",
        markup.pair(
            markup.facts(facts) + markup.table(("candidates removed because", "count"), removed),
            markup.figure(title, drawn) if drawn else "",
        ),
        _quantiles(mining),
        _examples(mining.get("examples") or {}),
    )


def _quantiles(mining: Part) -> str:
    found = {words: mining[name] for name, words in SCORES.items() if mining.get(name)}
    names: Part = next(iter(found.values()), {})
    rows = [(QUANTILES.get(name, name), *(f"{values[name]:.3f}" for values in found.values())) for name in names]
    return markup.table(("quantile", *found), rows, caption="The teacher's scores of")


def _examples(examples: Mapping[str, Sequence[Part]]) -> str:
    rows: list[Sequence[str]] = []
    for kind, shown in examples.items():
        rows += [[REMOVALS.get(kind, kind)]] if shown else []
        for one in shown:
            ids = (markup.code(one[name]) for name in ("query", "positive", "candidate"))
            rows.append((*ids, f"{one['positive_score']:.3f}", f"{one['score']:.3f}"))
    table = markup.table(("query", "positive", "candidate", "positive's score", "candidate's"), rows, numbers=3)
    return f"<details><summary>Examples, by id</summary>{table}</details>" if table else ""


def _training(training: Part) -> str:
    facts = [
        ("from encoder", markup.code(training.get("base") or "")),
        ("teacher", markup.code(training.get("teacher") or "")),
        ("new encoder", markup.code(training.get("encoder") or "")),
        *((name, f"{training[name]:,}") for name in ("examples", "steps") if name in training),
        ("on", " ".join(str(training[name]) for name in ("device", "precision") if name in training)),
        ("time", markup.duration(training["seconds"]) if "seconds" in training else ""),
        ("most memory", size(training["peak_memory_bytes"]) if "peak_memory_bytes" in training else ""),
    ]
    recipe = [(name.replace("_", " "), value) for name, value in (training.get("recipe") or {}).items()]
    points = [(step, math.nan if loss is None else loss) for step, loss in training.get("curve") or ()]
    title = "Training loss by step"
    drawn = plots.line_chart(points, title=title, x_label="step", y_label="loss") if "curve" in training else ""
    folded = f"<details><summary>Recipe</summary>{markup.facts(recipe)}</details>" if recipe else ""
    curve = markup.figure(title, drawn) if drawn else ""
    return markup.section("Training", markup.pair(markup.facts(facts) + folded, curve))


def _steps(steps: Sequence[Part]) -> str:
    return markup.section(
        "Steps", markup.table(("step", "time"), [(one["name"], markup.duration(one["seconds"])) for one in steps])
    )


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")
