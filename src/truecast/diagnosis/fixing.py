"""Applies the fixes that cannot change a result, and checks by running both files that they did not.

The mended model is a new file beside the old one. Weights that are external data are written anew into a data file of
its own, so that what was stored twice is stored once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from truecast.diagnosis.diagnosing import gather, id_bounds
from truecast.diagnosis.evidence import Evidence
from truecast.diagnosis.feeds import Sizes, can_feed, make_feeds
from truecast.diagnosis.observing import Outputs, first_line
from truecast.diagnosis.rules.attention import is_training
from truecast.diagnosis.rules.weights import SMALLEST_BYTES, escapes, missing, same_weights
from truecast.errors import InputError, ProofError
from truecast.runtime.providers import FOLDER_KEY, LOAD_ERRORS, session_options

SUFFIX = ".fixed.onnx"
RATIO, MODE = 1, 2
"""Inputs of Dropout."""
TRIALS = (Sizes(), Sizes(batch=3, length=5))


@dataclass(frozen=True)
class Repair:
    """What was mended: the new file (None when there was nothing to mend), the codes, and how it was checked."""

    path: Path | None
    codes: tuple[str, ...]
    check: str

    def to_dict(self) -> dict[str, Any]:
        """The repair as part of a JSON document."""
        return asdict(self) | {"path": None if self.path is None else str(self.path)}

    def __str__(self) -> str:
        if self.path is None:
            return "There is nothing to mend."
        return f"Mended {', '.join(self.codes)} in {self.path}; {self.check}."


def repair(path: Path | str) -> Repair:
    """Writes a mended copy of a model beside it, as MODEL.fixed.onnx.

    Raises:
        InputError: the model cannot be read, its data lies elsewhere, or the mended file exists already.
        ProofError: the mended model gives other results; nothing is left behind.
    """
    evidence = gather(Path(path))
    if escapes(evidence) or missing(evidence):
        raise InputError(
            f"{evidence.path} has external data that is outside its folder or missing; nothing was mended."
        )
    out = evidence.path.with_name(evidence.path.stem + SUFFIX)
    if out.exists():
        raise InputError(f"{out} exists already; move it away.")
    codes = tuple(code for code, mend in MENDERS.items() if mend(evidence))
    if not codes:
        return Repair(None, (), "")
    data = out.with_name(out.name + ".data") if evidence.external else None
    ir.save(evidence.model, out, external_data=None if data is None else data.name)
    try:
        return Repair(out, codes, _checked(evidence.path, out, codes))
    except ProofError:
        for file in (out, data):
            if file is not None:
                file.unlink(missing_ok=True)
        raise


def _share_duplicates(evidence: Evidence) -> bool:
    """Lets every user of equal weights of one graph refer to the first."""
    changed = False
    for first, *others in same_weights(evidence.weights):
        for other in others:
            if other.value.graph is first.value.graph and other.value not in evidence.graph.outputs:
                ir.convenience.replace_all_uses_with(other.value, first.value)
                _forget(other.value)
                changed = True
    return changed


def _forget(value: ir.Value) -> None:
    graph = value.graph
    if graph is not None and not value.is_graph_input():
        del graph.initializers[value.name or ""]


def _remove_unused(evidence: Evidence) -> bool:
    """Removes weights that nothing reads."""
    idle = [weight for weight in evidence.weights if _is_idle(weight.value)]
    for weight in idle:
        _forget(weight.value)
    return any(weight.nbytes >= SMALLEST_BYTES for weight in idle)


def _is_idle(value: ir.Value) -> bool:
    graph = value.graph
    held = graph is not None and graph.initializers.get(value.name or "") is value
    return held and not value.uses() and not value.is_graph_output() and not value.is_graph_input()


def _switch_off_dropout(evidence: Evidence) -> bool:
    """Sets training mode to false, which is what inference means for Dropout."""
    nodes = [node for node in evidence.nodes if node.op_type == "Dropout" and is_training(node, evidence)]
    for node in nodes:
        _set_input(node, MODE, np.zeros((), np.bool_), "inference")
    return bool(nodes)


def _set_input(node: ir.Node, index: int, array: np.ndarray, suffix: str) -> None:
    """Gives a node a constant of its own as an input."""
    name, tensor = f"{node.outputs[0].name}/{suffix}", ir.tensor(array)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    if node.graph is not None:
        node.graph.initializers[value.name or ""] = value
    node.replace_input_with(index, value)


MENDERS: Mapping[str, Callable[[Evidence], bool]] = MappingProxyType(
    {"TC501": _share_duplicates, "TC508": _remove_unused, "TC607": _switch_off_dropout}
)
"""What mends a finding, by its code: changes the evidence's model and says whether it changed something."""


def _checked(before: Path, after: Path, codes: tuple[str, ...]) -> str:
    """Runs both on the same made-up inputs; raises ProofError when an output differs in one bit."""
    bounds = id_bounds(gather(before))
    old = _undropped(before) if "TC607" in codes else before.read_bytes()
    names = 0
    for sizes in TRIALS:
        wanted, got = _run(old, before, sizes, bounds), _run(after.read_bytes(), after, sizes, bounds)
        if wanted is None or got is None:
            raise ProofError(f"{before} cannot be run on made-up inputs, so no change to it can be checked.")
        for name, result in wanted.items():
            if not np.array_equal(result, got[name], equal_nan=result.dtype.kind == "f"):
                raise ProofError(f"Output {name} of the mended model differs; {before} was left as it is.")
        names = len(wanted)
    return f"{names} outputs are the same bit for bit on {len(TRIALS)} made-up inputs"


def _undropped(before: Path) -> bytes:
    """The model with ratios of zero: in training mode too nothing is dropped, as in the mended model."""
    evidence = gather(before)
    for node in evidence.nodes:
        if node.op_type == "Dropout" and is_training(node, evidence):
            ratio = node.inputs[RATIO]
            dtype = evidence.types.get(ratio) if ratio is not None else None
            _set_input(node, RATIO, np.zeros((), (dtype or ir.DataType.FLOAT).numpy()), "ratio")
    return bytes(ir.to_proto(evidence.model).SerializeToString())


def _run(model: bytes, file: Path, sizes: Sizes, bounds: Mapping[str, int]) -> Outputs | None:
    """One run; the bytes' external data is beside `file`."""
    options = session_options(entries={})
    options.add_session_config_entry(FOLDER_KEY, str(file.parent))
    try:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs = session.get_inputs()
        if not can_feed(inputs):
            return None
        results = session.run(None, make_feeds(inputs, sizes, bounds))
    except LOAD_ERRORS as error:
        raise ProofError(f"{file} does not run, so no change to it can be checked: {first_line(error)}") from error
    return {info.name: np.asarray(result) for info, result in zip(session.get_outputs(), results, strict=True)}
