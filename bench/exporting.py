"""Measures exports: time and memory of each contender's exporter, in turn, and what it wrote."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from contenders import CONTENDERS, Contender, Places
from memory import Run, measure

READ_BYTES = 1 << 24


@dataclass
class Exports:
    """The runs by contender, what their graphs hold, and why a contender is missing."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    products: dict[str, dict[str, int]] = field(default_factory=dict)
    weight_bytes: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def run_exports(places: Places, names: list[str], rounds: int, environment: Mapping[str, str]) -> Exports:
    """Exports the checkpoint with every contender among `names` that has an exporter, `rounds` times in turn."""
    found = Exports()
    touch(places.checkpoint / "model.safetensors")
    for number in range(rounds):
        for name in names:
            if CONTENDERS[name].export is not None and name not in found.missing:
                print(f"export {number + 1} of {rounds}: {CONTENDERS[name].title}", flush=True)
                _one(places, name, environment, found)
    return found


def _one(places: Places, name: str, environment: Mapping[str, str], found: Exports) -> None:
    """Runs one export and records it, or why it failed."""
    contender = CONTENDERS[name]
    run, reason = export(places, contender, places.checkpoint, contender.model_path(places), environment)
    if run is None:
        found.missing[name] = reason
        found.runs.pop(name, None)
        return
    found.runs.setdefault(name, []).append(run)
    found.products[name] = products(contender.model_path(places) / "model.onnx")
    found.weight_bytes[name] = contender.weight_bytes(places)


def export(
    places: Places, contender: Contender, source: Path, out: Path, environment: Mapping[str, str]
) -> tuple[Run | None, str]:
    """Runs one exporter with `out` cleared away before; returns its run, or None and the reason."""
    if contender.export is None:
        return None, "has no exporter"
    command = contender.export(places, source, out)
    if not Path(command[0]).exists():
        return None, f"{command[0]} does not exist"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # so that no exporter pays for the pages that the one before it wrote
    log = places.folder / f"export-{contender.model}.log"
    run = measure(command, environment, log)
    if run.status != 0 or not (out / "model.onnx").exists():
        return None, f"the export ended with status {run.status}: {last_line(log)}"
    return run, ""


def products(path: Path) -> dict[str, int]:
    """How many matrix products of each kind the graph really holds, so that the settings are seen to have worked."""
    counts: Counter[str] = Counter()
    for node in onnx.load(path, load_external_data=False).graph.node:
        if node.op_type == "MatMulNBits":
            values = {item.name: item.i for item in node.attribute}
            kind = " ".join(f"{key} {values.get(key, 0)}" for key in ("bits", "block_size", "accuracy_level"))
            counts[f"MatMulNBits, {kind}"] += 1
        elif node.op_type in ("MatMul", "Gemm", "GatherBlockQuantized"):
            counts[node.op_type] += 1
    return dict(sorted(counts.items()))


def touch(path: Path) -> None:
    """Reads a file once, so that it lies in the page cache for every contender alike."""
    with path.open("rb") as file:
        while file.read(READ_BYTES):
            pass


def last_line(log: Path) -> str:
    """The last line with anything in it of a log; what a failed program had to say is usually there."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
