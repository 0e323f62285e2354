"""report.html: one file with everything in it, which fetches nothing and is well-formed XML."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from truecast.study.charts import accuracy_chart, memory_chart, scatter_chart, speed_chart
from truecast.study.report_markdown import about, how
from truecast.study.results import Report, Verdict
from truecast.study.tables import Table, failures, latencies, summary, without_empty

STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --page: #fff; --panel: #f3f6f9; --rule: #dde3ea; --torch: #8a94a3;
  --onnx: #2a6fb8; --mapped: #b9d1ea; --front: #2a6; --bad: #b11; --warn: #a60; --info: #567 }
@media (prefers-color-scheme: dark) { :root { --text: #dfe5ec; --page: #14181e; --panel: #1d232b; --rule: #343d49;
  --torch: #8a94a3; --onnx: #5a9fe4; --mapped: #2f4d6e; --front: #4c8; --bad: #f77; --warn: #eb5; --info: #9ab } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: var(--text);
  background: var(--page) }
h2 { margin-top: 2.5rem }
.verdict { border-left: 5px solid var(--front); padding: .5rem 1rem; background: var(--panel) }
.against { border-color: var(--bad) } .void { border-color: var(--warn) }
.scroll { overflow: auto; max-width: 100%; max-height: 80vh; border: 1px solid var(--rule) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap }
thead th { position: sticky; top: 0; background: var(--panel) }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); text-align: left }
table.words td, table.words th { text-align: left; white-space: normal; overflow-wrap: anywhere }
table.sortable th { cursor: pointer } th[aria-sort=ascending]::after { content: " ▲" }
th[aria-sort=descending]::after { content: " ▼" } tr:hover td { background: var(--panel) }
svg { max-width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: var(--text) }
svg .torch { fill: var(--torch) } svg .onnx { fill: var(--onnx) } svg .mapped { fill: var(--mapped) }
svg .best { stroke: var(--front); stroke-width: 3 }
svg polyline.front { fill: none; stroke: var(--front); stroke-width: 2 }
svg .grid { stroke: var(--rule) } svg .leader { stroke: var(--torch) }
svg .whisker { stroke: var(--text); stroke-width: 1.5 }
.error { color: var(--bad) } .warning { color: var(--warn) } .info { color: var(--info) }
"""

SCRIPT = """
document.querySelectorAll("table.sortable th").forEach(function (head) {
  head.addEventListener("click", function () {
    var table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    var down = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    Array.from(body.rows).sort(function (a, b) {
      var x = a.cells[column], y = b.cells[column], p = x.dataset.value, q = y.dataset.value;
      if (p === "" || q === "") { return (p === "") - (q === ""); }
      var order = p === undefined ? x.textContent.localeCompare(y.textContent) : p - q;
      return down ? -order : order;
    }).forEach(function (row) { body.appendChild(row); });
  });
});
"""


def html(report: Report) -> str:
    """The whole report as one HTML document."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    name = escape(report.name)
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>{name}</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{name}</h1>"
    yield f'<div class="{_side(report.verdict)}"><p><strong>{escape(report.verdict.sentence)}</strong></p><ul>'
    yield from (f"<li>{escape(reason)}</li>" for reason in report.verdict.reasons)
    yield "</ul></div>" if report.verdict.reasons else "<li>Nothing else.</li></ul></div>"
    yield from _table(summary(report), "sortable")
    yield from _table(failures(report), "words")
    yield f"<h2>Score against latency</h2>{scatter_chart(report)}"
    yield f"<h2>Speed</h2>{speed_chart(report)}"
    if accuracies := accuracy_chart(report):
        yield f"<h2>Accuracy</h2>{accuracies}"
    yield f"<h2>Memory</h2>{memory_chart(report)}"
    yield from _table(latencies(report), "sortable")
    yield from _findings(report)
    yield "<h2>How it was measured</h2><ul>"
    yield from (f"<li>{escape(line)}</li>" for line in how(report))
    yield "</ul>"
    yield from _environments(report)
    yield f"<script>{SCRIPT}</script></body></html>"


def _side(verdict: Verdict) -> str:
    """The classes of the verdict's box."""
    if verdict.void:
        return "verdict void"
    return "verdict" if verdict.use_onnx else "verdict against"


def _table(table: Table, kind: str) -> Iterator[str]:
    """A table; a field to sort by number carries it."""
    if not table.rows:
        return
    table = without_empty(table)
    numeric = [any(row[place].value is not None for row in table.rows) for place in range(len(table.headings))]
    yield f'<h2>{escape(table.title)}</h2><div class="scroll"><table class="{kind}"><thead><tr>'
    yield "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    yield "</tr></thead><tbody>"
    for row in table.rows:
        fields = []
        for entry, number in zip(row, numeric, strict=True):
            value = f' data-value="{"" if entry.value is None else repr(entry.value)}"' if number else ""
            fields.append(f"<td{value}>{escape(entry.text)}</td>")
        yield f"<tr>{''.join(fields)}</tr>"
    yield "</tbody></table></div>"


def _findings(report: Report) -> Iterator[str]:
    found = [row for row in report.rows if row.variant.kind != "torch"]
    if not found:
        return
    yield "<h2>Findings</h2>"
    for row in found:
        proof = f", {row.proof}" if row.proof else ""
        yield f"<details><summary>{escape(row.variant.name)}: {len(row.findings)}{escape(proof)}</summary><ul>"
        for it in row.findings:
            detail = f" {escape(about(it))}." if about(it) else ""
            yield (
                f'<li><code class="{escape(it.severity)}">{escape(it.code)}</code> ({it.count}) '
                f"{escape(it.title)}.{detail} {escape(it.cost)} {escape(it.fix)}</li>"
            )
        yield "".join(f"<li>{escape(note)}</li>" for note in row.notes)
        yield "<li>No findings.</li></ul></details>" if not (row.findings or row.notes) else "</ul></details>"


def _environments(report: Report) -> Iterator[str]:
    """Versions and processor, once for each that differs."""
    yield "<h2>Versions and processor</h2>"
    seen: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for row in report.rows:
        if row.environment:
            seen.setdefault(tuple(sorted(row.environment.items())), []).append(row.variant.name)
    for environment, names in seen.items():
        if len(seen) > 1:
            yield f"<p>{escape(', '.join(names))}</p>"
        yield '<div class="scroll"><table class="words"><tbody>'
        yield from (f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in environment)
        yield "</tbody></table></div>"
