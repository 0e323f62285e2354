"""report.md: the verdict first, then the tables, the findings, and what everything ran on."""

from __future__ import annotations

from collections.abc import Iterator

from truecast.study.results import Noted, Report
from truecast.study.tables import Table, failures, latencies, summary, without_empty


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield from (f"# {escaped(report.name)}", "", f"**{escaped(report.verdict.sentence)}**", "")
    yield from (f"- {escaped(reason)}" for reason in report.verdict.reasons)
    for table in (summary(report), failures(report), latencies(report)):
        if table.rows:
            yield from ("", f"## {table.title}", "")
            yield from table_lines(without_empty(table))
    yield from _findings(report)
    yield from ("", "## How it was measured", "")
    yield from (f"- {escaped(line)}" for line in how(report))
    yield from ("", "| what | version |", "|---|---|")
    yield from (f"| {escaped(name)} | {escaped(value)} |" for name, value in report.reference.environment.items())


def table_lines(table: Table) -> Iterator[str]:
    """A Markdown table, numbers to the right."""
    right = [
        all(row[place].value is not None or not row[place].text for row in table.rows)
        for place in range(len(table.headings))
    ]
    yield f"| {' | '.join(escaped(heading) for heading in table.headings)} |"
    yield f"|{'|'.join('---:' if side else '---' for side in right)}|"
    for row in table.rows:
        yield f"| {' | '.join(escaped(entry.text) for entry in row)} |"


def _findings(report: Report) -> Iterator[str]:
    found = [row for row in report.rows if row.findings]
    if not found:
        return
    yield from ("", "## Findings", "")
    for row in found:
        for finding in row.findings:
            detail = f": {about(finding)}" if about(finding) else ""
            text = f"{finding.code} ({finding.severity}, {finding.count}): {finding.title}{detail}"
            yield f"- {escaped(row.variant.name)}: {escaped(text)}"


def about(finding: Noted) -> str:
    """What a finding is about: its words, or else the names of nodes."""
    return finding.detail or ", ".join(finding.nodes)


def how(report: Report) -> list[str]:
    """What the numbers mean, a sentence each; for every form of the report."""
    plan = report.plan
    measure, data = plan["measure"], plan["data"]
    rows = next((one.rows for one in report.reference.heads), None) or data["rows"]
    lines = [
        f"Model: {plan['model']['source']}; rows: {data['file']}" + (f", {rows} of them" if rows else "") + ".",
        f"Latency: {measure['warmup']} calls untimed, then up to {measure['repeats']} timed (at most "
        f"{measure['cell_seconds']:g} s a cell), batches of real tokens, no padding; each variant in its own process.",
        "Speed: of medians, the geometric mean over all cells; PyTorch in float32 is 1, and higher is faster.",
        "Memory: of the whole process behind the latencies. Anonymous memory is the process's own; file-backed pages "
        "can be shared and dropped. A process that runs PyTorch holds PyTorch's own code, too.",
        "Cosine: of each row's output to PyTorch's in float32, mean and lowest over the rows.",
    ]
    if report.drift is not None:
        lines.append(
            f"PyTorch in float32 was measured again at the end and took {report.drift:.2f} times as long as at first."
        )
    return lines


def escaped(text: str) -> str:
    """Text that Markdown's tables and markup leave alone."""
    flat = " ".join(text.split())
    for sign in "\\|*_`<[":
        flat = flat.replace(sign, f"\\{sign}")
    return flat
