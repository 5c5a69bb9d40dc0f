"""Pieces of a plain HTML page: values enter, escaped markup leaves.

Whatever is no `Html` yet is escaped, its control characters dropped, so no stranger's text becomes markup. What has
nothing to show is the empty string. Knows nothing of what the page is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from nvr_rag.output import one_line

STYLE = """
:root{color-scheme:light dark;--paper:#f6f8fa;--card:#fff;--ink:#1f2328;--soft:#59636e;--line:#d8dee4;
--good:#1a7f37;--bad:#cf222e}
@media (prefers-color-scheme:dark){:root{--paper:#0d1117;--card:#161b22;--ink:#e6edf3;--soft:#9aa4af;--line:#30363d;
--good:#3fb950;--bad:#ff7b72}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}
header,section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:1rem 1.25rem;
margin:0 0 1rem}
header{border-left:6px solid var(--soft)}header.accept{border-left-color:var(--good)}
header.reject,header.failed{border-left-color:var(--bad)}
h1{font-size:1.5rem;line-height:1.25;margin:.25rem 0 .5rem}h2{font-size:1.15rem;margin:0 0 .75rem}
p{margin:.25rem 0 .75rem}.soft{color:var(--soft)}
ul.findings{list-style:none;margin:.75rem 0 0;padding:0}
.findings li{display:grid;grid-template-columns:4.5rem 1fr;gap:.5rem;padding:.4rem 0;border-top:1px solid var(--line)}
.findings b{color:var(--soft)}.findings .pass b{color:var(--good)}.findings .fail b{color:var(--bad)}
pre{margin:.25rem 0 1rem;padding:.6rem .8rem;background:var(--paper);border-radius:6px;white-space:pre-wrap}
code,pre{font-family:ui-monospace,monospace;font-size:.875em}
dl{display:grid;grid-template-columns:fit-content(55%) 1fr;gap:.25rem 1rem;margin:0 0 .75rem}
dt{color:var(--soft)}dd{margin:0}
.scroll{overflow-x:auto;margin:0 0 .75rem}
table{border-collapse:collapse;min-width:min(100%,26rem);font-size:.9375rem}
caption{text-align:left;font-weight:600;padding:.25rem 0}
th,td{text-align:left;vertical-align:top;padding:.3rem .75rem .3rem 0;border-bottom:1px solid var(--line);
overflow-wrap:normal}
td code,th code{overflow-wrap:anywhere}thead th{color:var(--soft);font-weight:500}tbody th{font-weight:400}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.number:last-child{padding-right:0}
figure{margin:0 0 1rem}figcaption{margin:0 0 .25rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 2rem}
footer{color:var(--soft);font-size:.875rem}
""".strip()


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def section(title: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<section><h2>{html(title)}</h2>{body}</section>" if body else ""


def figure(caption: str, drawn: str) -> str:
    return f"<figure><figcaption>{html(caption)}</figcaption>{drawn}</figure>"


def pair(*parts: str) -> str:
    body = "".join(f"<div>{part}</div>" for part in parts if part)
    return f'<div class="pair">{body}</div>' if body else ""


def facts(pairs: Iterable[tuple[str, Any]]) -> str:
    """Names and values, a line each, without those that have no value."""
    rows = [f"<dt>{html(name)}</dt><dd>{html(value)}</dd>" for name, value in pairs if value not in ("", code(""))]
    return f"<dl>{''.join(rows)}</dl>" if rows else ""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: int = 1, caption: str = "") -> str:
    """A table whose columns from the `numbers`-th on (from 0) are aligned right; nothing without rows.

    A row of one cell is the heading of those below it.
    """
    if not rows:
        return ""
    kinds = ["" if i < numbers else ' class="number"' for i in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{html(name)}</th>' for name, kind in zip(columns, kinds, strict=True))
    body = []
    for first, *rest in rows:
        if not rest:
            body.append(f'<tr><th scope="rowgroup" colspan="{len(columns)}"><b>{html(first)}</b></th></tr>')
            continue
        cells = (f"<td{kind}>{html(cell)}</td>" for cell, kind in zip(rest, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row">{html(first)}</th>{"".join(cells)}</tr>')
    named = f"<caption>{html(caption)}</caption>" if caption else ""
    drawn = f"<table>{named}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{drawn}</div>'


def code(value: Any) -> Html:
    return Html(f"<code>{html(value)}</code>")


def html(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(escape(one_line(str(value))))


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
