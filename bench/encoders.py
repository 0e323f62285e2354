"""Encoders against PyTorch and other exporters: latency by batch and length, and how near the outputs stay.

Usage: encoders.py [--models minilm modernbert] [--rounds 9] [--minilm models/all-minilm-l6-v2] [--only NAME …]
                   [--work .bench/work] [--environments .bench/environments] [--out docs/benchmarks]

Every contender is a process of its own with two threads. In each round each takes its turn at each size, one at a time,
beginning with another contender; ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import machine
from contenders import WORKERS
from decoder import environment
from encoder_models import MAKERS, REFERENCE, make, make_modernbert
from encoder_report import page
from machine import busy_seconds, process_seconds
from workers.turns import THREADS

REPOSITORY = Path(__file__).parents[1]
SIZES = ((1, 32), (1, 256), (32, 32), (32, 128))
"""Batch and length, as users of embeddings have them: a query, a passage, batches of both."""
TIMES = {(1, 32): 20, (1, 256): 5, (32, 32): 2, (32, 128): 1}
"""Runs in one turn; the fastest counts, which a passing disturbance does not touch."""


class Worker:
    """One contender's process, loaded and waiting."""

    def __init__(self, kind: str, path: Path, variables: Mapping[str, str], log: Path) -> None:
        """Starts the process; raises RuntimeError with its last words when it does not load."""
        command = [sys.executable, str(WORKERS / "encoder_worker.py"), kind, str(path)]
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command, env=dict(variables), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._answer()

    def turn(self, batch: int, length: int, times: int, out: Path | None = None) -> float:
        """Seconds of the fastest of `times` runs."""
        assert self.process.stdin is not None
        order = {"batch": batch, "length": length, "times": times, "out": str(out) if out else None}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return float(min(self._answer()["seconds"]))

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            lines = [text for text in self.log.read_text(errors="replace").splitlines() if text.strip()]
            raise RuntimeError(lines[-1] if lines else "it ended without a word")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()


@dataclass
class Measured:
    """Seconds by contender, size and round; cosines with PyTorch's outputs; bytes on disk; who is missing and why."""

    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    cosines: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    foreign: float = 0.0


def measure(source: Path, folder: Path, names: Sequence[str], rounds: int, environments: Path) -> Measured:
    """Makes what is missing, then takes the rounds."""
    found, workers = Measured(), dict[str, Worker]()
    variables, cpus = environment(), machine.pin(THREADS)
    try:
        for name in names:
            out = folder / name
            print(f"{folder.name}: {MAKERS[name].title}", flush=True)
            reason = make(name, source, out, environments, folder / f"{name}.export.log")
            if reason is None:
                _load(name, source, out, variables, workers, found, folder)
            else:
                found.missing[name] = reason
        _outputs(workers, folder, found)
        _rounds(workers, rounds, cpus, found)
    finally:
        for worker in workers.values():
            worker.stop()
    return found


def _load(
    name: str,
    source: Path,
    out: Path,
    variables: Mapping[str, str],
    workers: dict[str, Worker],
    found: Measured,
    folder: Path,
) -> None:
    kind, path = ("torch", source) if MAKERS[name].command is None else ("onnx", out / "model.onnx")
    try:
        workers[name] = Worker(kind, path, variables, folder / f"{name}.worker.log")
    except RuntimeError as error:
        found.missing[name] = str(error)
        return
    files = [path] if path.is_file() else [source / "model.safetensors"]
    files += list(out.glob("*.data"))
    found.sizes[name] = sum(file.stat().st_size for file in files)


def _outputs(workers: dict[str, Worker], folder: Path, found: Measured) -> None:
    """One untimed run at every size, and the mean cosine of its vectors with PyTorch's."""
    for name, worker in list(workers.items()):
        for batch, length in SIZES:
            worker.turn(batch, length, 1, folder / f"{name}.{batch}x{length}.npy")
            got, want = (np.load(folder / f"{n}.{batch}x{length}.npy") for n in (name, REFERENCE))
            found.cosines.setdefault(name, {})[f"{batch}x{length}"] = _cosine(got, want)


def _cosine(got: np.ndarray, want: np.ndarray) -> float:
    y, r = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (got, want))
    return float(((y * r).sum(1) / (np.linalg.norm(y, axis=1) * np.linalg.norm(r, axis=1))).mean())


def _rounds(workers: dict[str, Worker], rounds: int, cpus: list[int], found: Measured) -> None:
    began, pids = busy_seconds(cpus), [worker.process.pid for worker in workers.values()]
    used = sum(map(process_seconds, pids))
    names = list(workers)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", flush=True)
        shift = number % max(1, len(names))
        for batch, length in SIZES:
            for name in names[shift:] + names[:shift]:
                taken = workers[name].turn(batch, length, TIMES[batch, length])
                found.seconds.setdefault(name, {}).setdefault(f"{batch}x{length}", []).append(taken)
    busy = busy_seconds(cpus) - began
    found.foreign = max(0.0, 1 - (sum(map(process_seconds, pids)) - used) / busy) if busy else 0.0


def document(measured: Mapping[str, Measured]) -> dict[str, Any]:
    """Everything measured, as JSON holds it; `ratio` is PyTorch's time over the contender's, medians of the rounds."""
    models: dict[str, Any] = {}
    for model, found in measured.items():
        rows = {}
        for name, cells in found.seconds.items():
            base = found.seconds[REFERENCE]
            rows[name] = {
                "title": MAKERS[name].title,
                "bytes": found.sizes[name],
                "milliseconds": {size: 1e3 * statistics.median(times) for size, times in cells.items()},
                "ratio": {size: _ratio(base[size], times) for size, times in cells.items()},
                "cosine": found.cosines[name],
            }
        missing = {MAKERS[name].title: reason for name, reason in found.missing.items()}
        models[model] = {"contenders": rows, "missing": missing, "foreign": found.foreign}
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine.describe(),
        "threads": THREADS,
        "models": models,
    }


def _ratio(base: Sequence[float], times: Sequence[float]) -> dict[str, float]:
    ratios = [b / t for b, t in zip(base, times, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


def main() -> None:
    """Prepares, measures, writes encoders.json and encoders.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("minilm", "modernbert"), default=("minilm", "modernbert"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--minilm", type=Path, default=REPOSITORY / "models/all-minilm-l6-v2")
    parser.add_argument("--only", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench/work")
    parser.add_argument("--environments", type=Path, default=REPOSITORY / ".bench/environments")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs/benchmarks")
    asked = parser.parse_args()
    names = [name for name in MAKERS if name in {REFERENCE, *asked.only}]
    measured = {}
    for model in asked.models:
        folder = asked.work / f"encoder-{model}"
        folder.mkdir(parents=True, exist_ok=True)
        source = asked.minilm if model == "minilm" else folder / "checkpoint"
        if model == "modernbert" and not source.exists():
            make_modernbert(source)
        measured[model] = measure(source, folder, names, asked.rounds, asked.environments)
    found = document(measured)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "encoders.json").write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "encoders.md").write_text(page(found))
    print(page(found))


if __name__ == "__main__":
    main()
