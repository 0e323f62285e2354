"""Quantizing by calibration: a library of its own, in a process of its own, and the checkpoint that it writes.

Data flow: checkpoint → a folder of floats → tokens of the calibration text → the library (`workers`) → a quantized
checkpoint, read like any other, its integers and scales taken as they are.

A process of its own, because these libraries patch transformers, set global options, and hold the whole model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from truecast.calibration.floats import float_folder
from truecast.calibration.texts import calibration_codec
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.errors import InputError

ROW_TOKENS, MOST_ROWS = 512, 128
"""Tokens of a row and rows, at most: GPTQ's and AutoRound's own habit of 128 rows, at a length that a CPU can bear."""
FEWEST_TOKENS = 32
"""A text of fewer tokens says nothing of what a model is used for."""
AUTO_ROUND_STEPS = 200
"""AutoRound's own default of tuning steps per block."""
LAST_LINES = 3
"""Lines of a library's output that an error shows."""


@dataclass(frozen=True)
class Library:
    """What a method needs: the package to import, the extra that installs it, its worker, and the bits it makes."""

    package: str
    extra: str
    worker: str
    bits: tuple[int, ...]


CALIBRATED: Mapping[str, Library] = {
    "gptq": Library("gptqmodel", "gptq", "gptq", (4, 8)),
    "awq": Library("auto_round", "auto-round", "auto_round", (4,)),
    "auto-round": Library("auto_round", "auto-round", "auto_round", (4, 8)),
}
"""Methods that calibrate. AWQ is auto-round's: gptqmodel 7.7's stops on a CPU, and autoawq is no longer kept."""


FOLDING = ("awq",)
"""Methods that scale columns of a weight, and undo that in the weight before it: neither is the source's any more."""


def require_library(method: str, bits: int) -> None:
    """Raises InputError when the library of a method is not installed, or makes no such codes."""
    library = CALIBRATED[method]
    if bits not in library.bits:
        known = " or ".join(f"int{bits}" for bits in library.bits)
        raise InputError(f"--method {method} makes no int{bits}; choose --precision {known}.")
    if find_spec(library.package) is None:
        raise InputError(
            f"--method {method} needs {library.package}, which is not installed; "
            f"run: pip install 'truecast[{library.extra}]'."
        )


def library_version(method: str) -> str:
    """The library of a method with its version, for the manifest."""
    package = CALIBRATED[method].package
    return f"{package} {version(package)}"


def calibrated(
    checkpoint: Checkpoint, method: str, bits: int, block: int, texts: Sequence[str], folder: Path, trusted: bool
) -> Checkpoint:
    """The checkpoint as the library quantized it, with the configuration and side files that it had.

    Args:
        checkpoint: what to quantize.
        method: of `CALIBRATED`.
        bits: of a code.
        block: weights per scale.
        texts: what the library runs the model on.
        folder: an empty folder for what is made on the way; the result's weights lie in it.
        trusted: whether code that comes with the checkpoint may run.

    Raises:
        InputError: the text is too short, or the library gives up.
    """
    source = float_folder(checkpoint, folder / "floats")
    rows = token_rows(source, texts)
    job = {
        "method": method,
        "source": str(source.resolve()),
        "out": str((folder / "quantized").resolve()),
        "bits": bits,
        "block": block,
        "rows": rows,
        "steps": AUTO_ROUND_STEPS,
        "trusted": trusted,
    }
    made = open_checkpoint(_run(job, folder))
    return replace(made, config=checkpoint.config, side_files=checkpoint.side_files)


def token_rows(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of all texts, one after the other, cut into rows of one length; raises InputError for too few."""
    codec = calibration_codec(folder)
    tokens: list[int] = []
    for text in texts:
        tokens += codec.encode(text)
        if len(tokens) >= ROW_TOKENS * MOST_ROWS:
            break
    if len(tokens) < FEWEST_TOKENS:
        raise InputError(
            f"The calibration text has {len(tokens)} tokens; calibration needs at least {FEWEST_TOKENS}, "
            f"and is good with {ROW_TOKENS * MOST_ROWS}."
        )
    length = min(ROW_TOKENS, len(tokens))
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)][:MOST_ROWS]


def _run(job: Mapping[str, object], folder: Path) -> Path:
    """Runs the worker of a job; returns the folder of the checkpoint that it wrote."""
    path, log = folder / "job.json", folder / "log.txt"
    path.write_text(json.dumps(job))
    worker = f"truecast.calibration.workers.{CALIBRATED[str(job['method'])].worker}"
    with log.open("wb") as output:
        status = subprocess.run(
            [sys.executable, "-m", worker, str(path.resolve())],
            cwd=folder,  # where auto-round leaves its workspace
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    found = sorted(Path(str(job["out"])).rglob("config.json"))
    if status or not found:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise InputError(
            f"--method {job['method']} failed in its library: {' / '.join(lines[-LAST_LINES:])}; "
            "choose another --block-size or --method."
        )
    return found[0].parent
