"""Applies the fixes that cannot change a result, and checks by running both files that they did not.

Data flow: the findings → the changes that are possible → a file in a folder of this run, with a data file of its own
where weights were external, each range once → both files run → the mended one is diagnosed again → renamed to
MODEL.fixed.onnx. Nothing has that name before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from truecast.diagnosis.apart import Ended, call_apart
from truecast.diagnosis.comparing import Comparison, Side, compare
from truecast.diagnosis.diagnosing import RUN_SECONDS, diagnose, gather, id_bounds
from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.mending import Change, apply, external_tensors, undropped
from truecast.diagnosis.rules import RULES
from truecast.diagnosis.rules.weights import escapes, missing
from truecast.diagnosis.stored import CHUNK_BYTES, tensor_bytes
from truecast.errors import InputError, ProofError
from truecast.publishing.staging import ARTIFACT, staging

SUFFIX = ".fixed.onnx"
ALIGNMENT = 1 << 16
"""Of the tensors in a data file: what every system maps."""


@dataclass(frozen=True)
class Repair:
    """What was mended: the new file (None when there was nothing), how many changes by code, and how it was checked.

    `left` are the codes of what is found in the mended file, or in the file where nothing could be mended.
    """

    path: Path | None
    mended: Mapping[str, int] = field(default_factory=dict)
    check: str = ""
    left: tuple[str, ...] = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes of what was mended."""
        return tuple(self.mended)

    def to_dict(self) -> dict[str, Any]:
        """The repair as part of a JSON document."""
        return asdict(self) | {"path": None if self.path is None else str(self.path), "codes": list(self.codes)}

    def __str__(self) -> str:
        left = f" Still found: {', '.join(self.left)}." if self.left else ""
        if self.path is None:
            return f"There is nothing to mend.{left}"
        counts = ", ".join(f"{code} ({count} change{'s' if count > 1 else ''})" for code, count in self.mended.items())
        return f"Mended {counts} in {self.path}; {self.check}.{left}"


def repair(path: Path | str, seconds: float | None = RUN_SECONDS) -> Repair:
    """Writes a mended copy of a model beside it, as MODEL.fixed.onnx, where a finding can be mended.

    `seconds` is what each run of the check may take; None checks in this process, without a limit.

    Raises:
        InputError: the model cannot be read, its data lies elsewhere, the disk is full, or the mended file exists.
        ProofError: the mended model gives other results, or cannot be run; nothing is left behind.
    """
    evidence = gather(Path(path))
    if escapes(evidence) or missing(evidence):
        raise InputError(
            f"{evidence.path} has external data that is outside its folder or missing; nothing was mended."
        )
    changes = possible_changes(evidence)
    if not changes:
        return Repair(None, left=diagnose(path).codes)
    out = evidence.path.with_name(evidence.path.stem + SUFFIX)
    data = out.with_name(out.name + ".data")
    for file in (out, data):
        _require_free(file)
    with staging(out, alone=True) as folder:
        made = folder / ARTIFACT / out.name
        try:
            _write(evidence, changes, made)
            check = _checked(evidence, changes, made, folder, seconds)
            left = diagnose(made).codes
            _publish(made, out, data)
        except OSError as error:
            raise InputError(f"{out} could not be written: {error.strerror or error}.") from error
    return Repair(out, {code: len(held) for code, held in changes.items()}, check, left)


def possible_changes(evidence: Evidence) -> dict[str, tuple[Change, ...]]:
    """What can be mended of what the rules find, by code."""
    held = {rule.code: rule.mend(evidence) for rule in RULES if rule.mend is not None and rule.look(evidence)}
    return {code: changes for code, changes in held.items() if changes}


def _require_free(file: Path) -> None:
    if os.path.lexists(file):
        raise InputError(f"{file} exists already; move it away.")


def _write(evidence: Evidence, changes: Mapping[str, tuple[Change, ...]], made: Path) -> None:
    model = onnx.load_model(evidence.path, format="protobuf", load_external_data=False)
    apply(model, (change for held in changes.values() for change in held))
    _copy_data(model, evidence.path.parent, made.with_name(made.name + ".data"))
    made.write_bytes(model.SerializeToString())


def _copy_data(model: onnx.ModelProto, source: Path, data: Path) -> None:
    """Copies each range of external data once, and lets the tensors refer to the copy."""
    ranges: dict[tuple[str, int, int], list[onnx.TensorProto]] = {}
    for tensor in external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        place = entries["location"], int(entries.get("offset", 0)), tensor_bytes(tensor)
        ranges.setdefault(place, []).append(tensor)
    needed, free = sum(length for _, _, length in ranges), shutil.disk_usage(data.parent).free
    if needed > free:
        raise InputError(
            f"The mended weights need {needed} bytes and {data.parent} has {free} free; nothing was mended."
        )
    if not ranges:
        return
    with data.open("wb") as target:
        for (location, offset, length), tensors in ranges.items():
            target.seek(-(-target.tell() // ALIGNMENT) * ALIGNMENT)
            for tensor in tensors:
                _refer(tensor, data.name, target.tell(), length)
            with (source / location).open("rb") as file:
                file.seek(offset)
                for start in range(0, length, CHUNK_BYTES):
                    target.write(file.read(min(CHUNK_BYTES, length - start)))


def _refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _checked(
    evidence: Evidence, changes: Mapping[str, tuple[Change, ...]], made: Path, scratch: Path, seconds: float | None
) -> str:
    """Runs both on the same made-up inputs; raises ProofError when an output differs in one bit."""
    before = evidence.path
    if any(change.dropout for held in changes.values() for change in held):
        model = onnx.load_model(before, format="protobuf", load_external_data=False)
        before = scratch / "before.onnx"
        before.write_bytes(undropped(model, evidence).SerializeToString())
    sides = Side(before.resolve(), evidence.path.parent.resolve()), Side(made.resolve(), made.parent.resolve())
    found = _compared(compare, (*sides, id_bounds(evidence)), seconds)
    if isinstance(found, Ended):
        raise ProofError(f"{evidence.path}: {found.step} {found.reason}, so no change to it can be checked.")
    if found.failure:
        raise ProofError(f"{evidence.path} does not run, so no change to it can be checked: {found.failure}")
    if found.different:
        raise ProofError(f"Output {found.different} of the mended model differs; {evidence.path} was left as it is.")
    return f"{found.outputs} outputs are the same bit for bit on {found.runs} made-up inputs"


def _compared(call: Callable[..., Comparison], arguments: tuple[Any, ...], seconds: float | None) -> Comparison | Ended:
    result = call(*arguments) if seconds is None else call_apart(call, arguments, seconds, lambda step: None)
    return result if isinstance(result, Comparison | Ended) else Comparison(failure="the check gave no answer")


def _publish(made: Path, out: Path, data: Path) -> None:
    """Gives the checked files their names, the data first: a model there is always whole."""
    staged = made.with_name(data.name)
    for file in (out, data):
        _require_free(file)
    if staged.exists():
        staged.rename(data)
    try:
        made.rename(out)
    except BaseException:
        if data.exists() and not out.exists():
            data.unlink()
        raise
