"""Errors in artifacts with experts: each must fail the proof, and be located where that can be told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.proof.conftest import Artifact
from tests.proof.planting import change_data, change_graph, failed, reprove
from truecast.artifact import Status
from truecast.exporting import export
from truecast.proof import expert_kernels
from truecast.proof.expert_kernels import expert_checks
from truecast.request import Request

DATA = Path(__file__).parents[1] / "data"
VALUES = "weights are the checkpoint's"
EXACT = "exact products against the original with these weights"
LOGITS = "as shipped against the original"
LEVELS = "activations as in the manifest"
EXPERTS = "model.layers.1.mlp.experts"
UP, DOWN = f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj"
COUNT = 4
"""Experts of a layer."""

Change = Callable[[np.ndarray], None]


def swap_gate_and_up(array: np.ndarray) -> None:
    """Exchanges the rows that take turns; 112 of either in each expert."""
    rows = array.reshape(COUNT, 112, 2, -1)
    rows[:] = rows[:, :, ::-1].copy()


def swap_two_experts(array: np.ndarray) -> None:
    experts = array.reshape(COUNT, -1)
    experts[[1, 2]] = experts[[2, 1]]


def one_scale(array: np.ndarray) -> None:
    floats = array.view(np.float32)
    floats[-1] *= 1.5


def next_scale(array: np.ndarray) -> None:
    floats = array.view(np.float32)
    floats[-1] = np.nextafter(floats[-1], np.float32(np.inf))


def one_zero_point(array: np.ndarray) -> None:
    array[5] ^= 0x30


def one_code(array: np.ndarray) -> None:
    array[37] ^= 0x10


def in_data(change: Change, *initializers: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in initializers:
            change_data(folder, name, change)

    return spoil


def in_graph(change: Callable[[ir.Model], None]) -> Callable[[Path], None]:
    return lambda folder: change_graph(folder, change)


def node_of(model: ir.Model) -> ir.Node:
    return next(n for n in model.graph if n.op_type in ("MoE", "QMoE") and (n.name or "").startswith(EXPERTS))


def attribute(name: str, value: float) -> Callable[[Path], None]:
    kind = ir.AttrFloat32 if isinstance(value, float) else ir.AttrInt64
    return in_graph(lambda model: node_of(model).attributes.add(kind(name, value)))  # type: ignore[arg-type]


def unweighted(model: ir.Model) -> None:
    """The weights are left divided by their sum."""
    (use,) = node_of(model).outputs[0].uses()
    assert use.node.op_type == "Mul"
    use.node.replace_input_with(1, next(n for n in model.graph if n.op_type == "Constant").outputs[0])
    one = ir.node("Constant", [], {"value": ir.tensor(np.ones((), np.float32))})
    model.graph.insert_before(use.node, one)
    use.node.replace_input_with(1, one.outputs[0])


def other_experts(model: ir.Model) -> None:
    """Layer 1 multiplies with the experts of layer 0."""
    first, second = (n for n in model.graph if n.op_type in ("MoE", "QMoE"))
    for place in (2, 3):
        second.replace_input_with(place, first.inputs[place])


@dataclass(frozen=True)
class Plant:
    """An error: in which artifact, what it does, and which check must fail."""

    name: str
    case: str
    precision: str
    spoil: Callable[[Path], None]
    fails: str
    method: str = "rtn"
    located: bool = True


PLANTS = [
    Plant("gate and up swapped", "mixtral", "fp32", in_data(swap_gate_and_up, UP), VALUES),
    Plant("codes of gate and up", "mixtral", "int4", in_data(swap_gate_and_up, f"{UP}.codes", f"{UP}.scales"), VALUES),
    Plant("two experts swapped", "mixtral", "fp32", in_data(swap_two_experts, UP, DOWN), VALUES),
    Plant("two experts' codes swapped", "mixtral", "int4", in_data(swap_two_experts, f"{DOWN}.codes"), VALUES),
    Plant("one scale of one expert", "mixtral", "int4", in_data(one_scale, f"{DOWN}.scales"), VALUES),
    Plant("one code", "mixtral", "int4", in_data(one_code, f"{UP}.codes"), VALUES),
    Plant("one zero point", "olmoe", "int4", in_data(one_zero_point, f"{DOWN}.zeros"), VALUES, "k-quant"),
    Plant("weights of the routing over their sum", "qwen3_moe", "fp32", in_graph(unweighted), LOGITS),
    Plant("one expert fewer", "mixtral", "fp32", attribute("k", 1), LOGITS),
    Plant("another slope of the gate", "mixtral", "fp32", attribute("activation_alpha", 1.702), LOGITS),
    Plant("something added to the linear part", "mixtral", "int4", attribute("activation_beta", 1.0), EXACT),
    Plant("the experts of another layer", "mixtral", "int4", in_graph(other_experts), EXACT),
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_a_planted_error_fails_the_proof(plant: Plant, spoilable: Artifact) -> None:
    folder = spoilable(plant.case, plant.precision, method=plant.method)
    plant.spoil(folder)
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    assert plant.fails in failed(certificate)
    if plant.located:
        found = next(note for note in certificate.notes if note.startswith("First divergence"))
        assert "layer 1" in found and EXPERTS in found


@pytest.mark.parametrize(("case", "precision"), [("mixtral", "int4"), ("qwen3_moe", "int8")])
def test_a_kernel_is_held_to_its_rounding(
    case: str, precision: str, made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(case, precision)
    (check,) = expert_checks(folder, "model.onnx")
    assert check.passed
    monkeypatch.setattr(expert_kernels, "rounds", lambda node: False)
    (check,) = expert_checks(folder, "model.onnx")
    assert not check.passed and check.measured is not None and check.measured > 2e-3


def test_a_kernel_of_floats_is_exact(made: Artifact, tmp_path: Path) -> None:
    folder = shutil.copytree(made("mixtral", "int4"), tmp_path / "artifact")

    def floats(model: ir.Model) -> None:
        for node in model.graph:
            if node.op_type == "QMoE":
                node.attributes.add(ir.AttrInt64("accuracy_level", 0))

    change_graph(folder, floats)
    (check,) = expert_checks(folder, "model.onnx")
    assert check.passed and check.limit == 1e-5


def own(tmp_path: Path, activations: str) -> Path:
    request = Request(precision="as-is", activations=activations, verify=False)
    return export(DATA / "gpt-oss-mxfp4", tmp_path / "out", request)


@pytest.mark.parametrize("activations", ["int8", "float"])
def test_the_last_bit_of_one_scale_of_own_codes_counts(activations: str, tmp_path: Path) -> None:
    folder = own(tmp_path, activations)
    change_data(folder, f"{UP}.scales", next_scale)
    assert VALUES in failed(reprove(folder))


def test_codes_of_8_bits_are_never_taken_for_float_activations(tmp_path: Path) -> None:
    folder = own(tmp_path, "int8")
    manifest = folder / "truecast.json"
    manifest.write_text(manifest.read_text().replace('"activations": "int8"', '"activations": "float"'))
    assert LEVELS in failed(reprove(folder))
