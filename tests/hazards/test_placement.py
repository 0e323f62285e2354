"""Placement: the tables against the installed runtime, and predicted copies against those of real sessions.

The numbers of copies were read from sessions of onnxruntime-gpu 1.31.1 that were created, not run, with libraries in
the place of CUDA's that do nothing; its partitioner and its Memcpy insertion are then the real ones.
"""

from __future__ import annotations

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from tests.hazards import attention, kernels, quantization
from tests.hazards.building import WIDTH, chain, constant, layer, model, node, rows, save, tensor, weight
from truecast.diagnosis.diagnosing import gather
from truecast.diagnosis.kernels import CPU, kernels_of, session_keys
from truecast.diagnosis.placement import Place
from truecast.runtime.providers import KNOWN_KEYS


def shape_arithmetic(folder: Path, hazard: bool) -> Path:
    """Reshape to sizes computed from a Shape: short chains that belong on the processor and cost no copy."""
    nodes = [
        node("Shape", ["x"], ["size"]),
        node("Gather", ["size", "first"], ["batch"], axis=0),
        node("Mul", ["batch", "two"], ["double"]),
        node("Concat", ["double", "rest"], ["sizes"], axis=0),
        node("Reshape", ["x", "sizes"], ["halves"]),
        node("MatMul", ["halves", "half"], ["y"]),
    ]
    numbers = [
        constant("first", [0], np.int64),
        constant("two", [2], np.int64),
        constant("rest", [WIDTH // 2], np.int64),
    ]
    made = model(nodes, [rows()], [tensor("y", ["rows", 8])], [*numbers, weight("half", WIDTH // 2, 8)])
    return save(made, folder)


def elu_at_the_end(folder: Path, hazard: bool) -> Path:
    return save(
        model(
            [layer("x", "m"), node("Elu", ["m"], ["y"])], [rows()], [rows("y")], [weight("w", WIDTH, WIDTH)], opset=22
        ),
        folder,
    )


def shared_value(folder: Path, hazard: bool) -> Path:
    """Two nodes of the processor read one value of the device: one copy serves both."""
    middle = [layer("x", "m"), node("Elu", ["m"], ["a"]), node("Selu", ["m"], ["b"]), node("Add", ["a", "b"], ["n"])]
    return save(chain(middle, "n", opset=22), folder)


SEEN_COPIES: tuple[tuple[Any, bool, int], ...] = (
    (kernels.falls_back, True, 2),
    (kernels.falls_back, False, 0),
    (kernels.copies_in_every_layer, True, 6),
    (kernels.dynamic_int8_on_cuda, True, 2),
    (attention.masked_on_cuda, True, 0),
    (quantization.left_in_float, True, 0),
    (shape_arithmetic, True, 0),
    (elu_at_the_end, True, 1),
    (shared_value, True, 3),
)


@pytest.mark.parametrize(("make", "hazard", "copies"), SEEN_COPIES)
def test_copies_are_those_of_a_session(make: Any, hazard: bool, copies: int, tmp_path: Path) -> None:
    assert len(gather(make(tmp_path, hazard), "cuda").placement.copies) == copies


def test_shape_arithmetic_goes_to_the_processor(tmp_path: Path) -> None:
    placement = gather(shape_arithmetic(tmp_path, True), "cuda").placement
    assert [n.op_type for n in placement.at(Place.PREFERRED)] == ["Gather", "Mul", "Concat"]


def test_the_table_is_that_of_the_installed_runtime() -> None:
    """Holds while the installed version is the table's; a newer one needs scripts/make_kernel_table.py."""
    table = kernels_of(CPU, "cpu")
    if ort.__version__ != table.runtime:
        pytest.skip(f"the table is of onnxruntime {table.runtime}: install that, or run scripts/make_kernel_table.py")
    held = sum(len(found) for found in table.table.values())
    assert held == sum(kernel.provider == CPU for kernel in state.get_all_opkernel_def())


def test_the_tables_are_small_and_readable() -> None:
    for build in ("cpu", "gpu"):
        packed = resources.files("truecast.diagnosis").joinpath("data", f"{build}.json.gz").read_bytes()
        assert len(packed) < 20_000
        assert set(json.loads(gzip.decompress(packed))) == {"kernels", "onnxruntime", "session_keys", "types"}


def test_every_key_that_truecast_sets_is_known() -> None:
    assert session_keys() >= KNOWN_KEYS


@pytest.mark.parametrize("operator", ["Mish", "HardSwish"])
@pytest.mark.parametrize(("dtype", "place"), [(np.float32, Place.EXPANDED), (np.float64, Place.NOWHERE)])
def test_an_operator_without_a_kernel_runs_where_its_parts_do(
    tmp_path: Path, operator: str, dtype: Any, place: Place
) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [tensor(name, ["rows", WIDTH], kind) for name in ("x", "y")]
    file = save(model([node(operator, ["x"], ["y"])], ends[:1], ends[1:], opset=22), tmp_path)
    evidence = gather(file)
    assert list(evidence.placement.places.values()) == [place]
    if place is Place.EXPANDED:
        ort.InferenceSession(file, providers=[CPU])
    else:
        with pytest.raises(state.NotImplemented, match="Could not find an implementation"):
            ort.InferenceSession(file, providers=[CPU])


def test_shapes_follow_through_the_parts_of_an_operator(tmp_path: Path) -> None:
    """ONNX itself infers no type behind a GroupNormalization."""
    dims = ["batch", 8, "length"]
    nodes = [node("GroupNormalization", ["x", "s", "b"], ["n"], num_groups=4), node("Add", ["n", "x"], ["y"])]
    made = model(nodes, [tensor("x", dims)], [tensor("y", dims)], [weight("s", 8), weight("b", 8)], opset=21)
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(made, strict_mode=True)
    assert gather(save(made, tmp_path)).shapes.failure is None


@pytest.mark.parametrize(
    ("operator", "opset", "place"),
    [
        ("Swish", 24, Place.EXPANDED),
        ("Swish", 25, Place.NOWHERE),
        ("Mish", 24, Place.EXPANDED),
        ("GroupNormalization", 20, Place.EXPANDED),
        ("GroupNormalization", 24, Place.EXPANDED),
    ],
)
def test_parts_of_an_older_opset_are_not_run(tmp_path: Path, operator: str, opset: int, place: Place) -> None:
    dims = ["batch", 8, "length"]
    grouped = operator == "GroupNormalization"
    one = node(operator, ["x", "s", "b"], ["y"], num_groups=8) if grouped else node(operator, ["x"], ["y"])
    weights = [weight("s", 8), weight("b", 8)] if grouped else []
    file = save(model([one], [tensor("x", dims)], [tensor("y", dims)], weights, opset=opset), tmp_path)
    assert list(gather(file).placement.places.values()) == [place]
    if place is Place.EXPANDED:
        ort.InferenceSession(file, providers=[CPU])
    else:
        with pytest.raises(state.NotImplemented, match="Could not find an implementation"):
            ort.InferenceSession(file, providers=[CPU])
