"""A diagnosis for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from truecast.diagnosis.model import Diagnosis, Finding, Severity

COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "cyan"}


def render(diagnosis: Diagnosis) -> RenderableType:
    """What was looked at, one block per finding, and the sum."""
    parts: list[RenderableType] = [_facts(diagnosis)]
    for finding in diagnosis.findings:
        parts += [Text(), _finding(finding)]
    parts += [Text(), *(Text(f"Note: {note}") for note in diagnosis.notes), Text(_sum(diagnosis))]
    return Group(*parts)


def _facts(diagnosis: Diagnosis) -> Table:
    facts, table = diagnosis.facts, Table.grid(padding=(0, 2))
    rows = [
        ("Model", f"{diagnosis.path}, made by {facts['producer']}"),
        ("Versions", f"opset {facts['opsets']}, IR {facts['ir_version']}; ONNX Runtime {facts['onnxruntime']}"),
        ("Graph", f"{facts['nodes']} nodes, {facts['weights']} weights of {decimal(int(facts['weight_bytes']))}"),
        ("Provider", f"{diagnosis.provider}; int8 products {facts['int8_products']}"),
    ]
    if "predicted_memcpy" in facts:
        rows.append(("Memcpy", f"{facts['predicted_memcpy']} predicted"))
    if "ran" in facts:
        rows.append(("Ran with", str(facts["ran"])))
    for name, value in rows:
        table.add_row(Text(name, "bold"), Text(value))
    return table


def _finding(finding: Finding) -> RenderableType:
    title = Text.assemble(
        (f"{finding.code} {finding.severity}", COLOURS[finding.severity]), "  ", (f"{finding.title}", "bold")
    )
    table = Table.grid(padding=(0, 2))
    for name, value in (("  seen", _evidence(finding)), ("  cost", finding.cost), ("  fix", finding.fix)):
        table.add_row(Text(name), Text(value))
    return Group(title, table)


def _evidence(finding: Finding) -> str:
    more = finding.count - len(finding.nodes)
    names = ", ".join(finding.nodes) + (f" and {more} more" if more > 0 else "")
    sizes = [] if finding.nbytes is None else [decimal(finding.nbytes)]
    sizes += [] if finding.milliseconds is None else [f"{finding.milliseconds:.3f} ms"]
    return "; ".join(filter(None, (finding.detail, *sizes, names)))


def _sum(diagnosis: Diagnosis) -> str:
    counts = {severity: sum(f.severity is severity for f in diagnosis.findings) for severity in Severity}
    words = ", ".join(f"{count} {severity}{'s' if count != 1 else ''}" for severity, count in counts.items() if count)
    fixable = [finding.code for finding in diagnosis.findings if finding.fixable]
    hint = f"; --fix mends of {', '.join(fixable)} what it can" if fixable else ""
    return f"{words}{hint}." if words else "Nothing was found."
