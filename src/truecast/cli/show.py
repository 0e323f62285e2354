"""Printing results, for people or as one JSON document; the functions return the exit status that a result means."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from truecast.artifact import Certificate, Status
from truecast.cli.certificates import checks_table, prices, tiers_table, verdict
from truecast.cli.choice import Choice
from truecast.cli.meter import Meter
from truecast.inspection import Inspection, render

if TYPE_CHECKING:
    from truecast.api import Artifact
    from truecast.diagnosis import Diagnosis, Repair
    from truecast.runtime.answers import Answer
    from truecast.runtime.model import Generation
    from truecast.study import Report
    from truecast.study.tables import Table as Measured

PIPED_WIDTH = 240
"""Columns where there is no terminal, so that no table is cut or folded."""
NARROW = 80
"""Columns that are always enough for an inspection."""


def inspected(inspection: Inspection, as_json: bool) -> int:
    """What a checkpoint is."""
    _print(inspection.to_dict() if as_json else render(inspection), NARROW)
    return 0


def exported(artifact: Artifact, chosen: Choice, meter: Meter, as_json: bool) -> int:
    """Where the artifact is, its size, what the export cost, and the verdict."""
    manifest, certificate = artifact.manifest, artifact.manifest.certificate
    size = folder_bytes(artifact.folder)
    if as_json:
        facts: dict[str, Any] = {"target": manifest.target, "precision": manifest.precision}
        facts |= {"reason": chosen.reason, "bytes": size, "notices": manifest.notices}
        _print({"folder": str(artifact.folder), **facts, **_costs(meter), **certificate.model_dump(mode="json")})
        return 0
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("Artifact", f"{artifact.folder} ({decimal(size)})"),
        ("Target", f"{manifest.target} on {manifest.provider}"),
        ("Precision", str(chosen)),
        ("Took", _took(meter)),
        ("Verdict", verdict(certificate)),
        *(("", price) for price in prices(certificate)),
        *(("Noise" if number == 0 else "", line) for number, line in enumerate(noise_lines(certificate))),
        *(("Note", notice) for notice in manifest.notices),
    ):
        table.add_row(Text(name, "bold"), Text(value))
    _print(table)
    return 0


def verified(folder: Path, certificate: Certificate, meter: Meter, as_json: bool, every_check: bool) -> int:
    """A row for each tier, or for each check, those that failed, and the verdict; the status is 1 when one failed."""
    if as_json:
        _print({"folder": str(folder), **_costs(meter), **certificate.model_dump(mode="json")})
    else:
        checks = certificate.checks
        _print(checks_table(checks) if every_check else tiers_table(checks))
        failed = [f"Failed: {check.tier}, {check.name}: {check.detail}." for check in checks if not check.passed]
        priced = [f"The {price}." for price in prices(certificate)]
        for line in (*failed, *priced, *(f"Note: {note}" for note in certificate.notes)):
            _print(Text(line))
        _print(Text(f"{folder} is {verdict(certificate)} ({_took(meter)})."))
    return 0 if certificate.status is Status.PROVEN else 1


def diagnosed(diagnosis: Diagnosis, repair: Repair | None, as_json: bool) -> int:
    """The findings, and what was mended; the status is 1 when a finding is an error."""
    from truecast.diagnosis import render as render_diagnosis

    if as_json:
        _print(diagnosis.to_dict() | ({} if repair is None else {"repair": repair.to_dict()}))
        return diagnosis.exit_status
    _print(render_diagnosis(diagnosis))
    if repair is not None:
        _print(Text(str(repair)))
    return diagnosis.exit_status


def studied(report: Report, out: Path, as_json: bool) -> int:
    """The variants side by side, those that did not work, the verdict and where the reports are."""
    if as_json:
        _print(report.model_dump(mode="json"))
        return 0
    from truecast.study.tables import failures, fitted, summary, without_empty

    variants, failed = summary(report), failures(report)
    for part in fitted(without_empty(variants), _width()) if variants.rows else ():
        _print(_measured_table(part))
    if failed.rows:
        shown = Table(*failed.headings)
        for name, reason in failed.rows:
            shown.add_row(Text(name.text), Text(reason.text))
        _print(shown)
    for line in (report.verdict.sentence, *report.verdict.reasons, f"The report is in {out / 'report.html'}."):
        _print(Text(line))
    return 0


def _measured_table(part: Measured) -> Table:
    """A table of numbers, none of which is cut or folded."""
    from truecast.study.tables import column_widths

    shown = Table()
    for number, (heading, width) in enumerate(zip(part.headings, column_widths(part), strict=True)):
        shown.add_column(heading, width=width, justify="right" if number else "left", overflow="fold")
    for row in part.rows:
        shown.add_row(*(Text(entry.text) for entry in row))
    return shown


def answered(answer: Answer, as_json: bool) -> int:
    """What an encoder made of a text."""
    if as_json:
        _print({"task": answer.task, **answer.values})
    else:
        for line in answer.lines:
            _print(Text(line))
    return 0


def piece(prompt: int, text: str) -> None:
    """Prints a piece of generated text at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def generated(generation: Generation, as_json: bool) -> int:
    """The end of a generation whose text was printed as it came, or all of it as JSON."""
    timing = generation.timing
    if as_json:
        rates = {"prefill_rate": timing.prefill_rate, "decode_rate": timing.decode_rate}
        _print({**asdict(generation), "timing": {**asdict(timing), **rates}})
        return 0
    print()
    if sys.stdout.isatty() and sys.stderr.isatty():
        speed = f"{timing.new_tokens} tokens, {timing.decode_rate:.1f} per second; ended by {generation.finish}"
        Console(stderr=True).print(Text(speed, "dim"))
    return 0


def noise_lines(certificate: Certificate) -> list[str]:
    """The signal-to-noise ratio of every quantized weight, a line for each layer."""
    layers: dict[str, list[str]] = {}
    for name, ratio in certificate.signal_to_noise.items():
        layer, number, rest = LAYER.match(name.removesuffix(".weight")).group(1, 2, 3)  # type: ignore[union-attr]
        value = "exact" if ratio is None else f"{ratio:.1f}"
        layers.setdefault(f"{layer}{number}", []).append(f"{rest} {value}" if rest else value)
    return [f"{layer}: {', '.join(values)} dB" for layer, values in layers.items()]


LAYER = re.compile(r"^(.*?)(\.\d+(?=\.)|$)\.?(.*)$")
"""A weight's name: what comes before the number of its layer, the number, and the rest."""


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _took(meter: Meter) -> str:
    return f"{meter.seconds:.1f} s, at most {decimal(meter.peak_bytes)} of memory"


def _costs(meter: Meter) -> dict[str, Any]:
    return {"seconds": round(meter.seconds, 3), "peak_memory_bytes": meter.peak_bytes}


def _print(result: RenderableType | dict[str, Any], widest: int = PIPED_WIDTH) -> None:
    if isinstance(result, dict):
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
    Console(width=min(_width(), widest), highlight=False).print(result)


def _width() -> int:
    """Columns to print in: the terminal's."""
    return Console().width if sys.stdout.isatty() else PIPED_WIDTH
