"""TC5xx: weights and external data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from tests.hazards.building import (
    WIDTH,
    Hazard,
    chain,
    constant,
    layer,
    linear,
    model,
    node,
    rows,
    save,
    tensor,
    weight,
)

IDS = tensor("ids", ["batch"], TensorProto.INT64)
VOCABULARY = 96


def twice(folder: Path, hazard: bool) -> Path:
    """One matrix under two names."""
    other = weight("w", WIDTH, WIDTH)
    other.name = "copy"
    made = model(
        [layer("x", "m"), layer("m", "y", "copy" if hazard else "w")],
        [rows()],
        [rows("y")],
        [weight("w", WIDTH, WIDTH), *([other] if hazard else [])],
    )
    return save(made, folder)


def constants_twice(folder: Path, hazard: bool) -> Path:
    """One matrix in two Constant nodes, as Paddle and Spox write weights."""
    held = [weight("w", WIDTH, WIDTH), weight("w" if hazard else "v", WIDTH, WIDTH)]
    nodes = [node("Constant", [], [name], value=tensor) for name, tensor in zip(("a", "b"), held, strict=True)]
    return save(model([*nodes, layer("x", "m", "a"), layer("m", "y", "b")], [rows()], [rows("y")]), folder)


def sparse_twice(folder: Path, hazard: bool) -> Path:
    """A sparse initializer and the same matrix written out."""
    values = weight("s", 8)
    indices = constant("", [[i, 2 * i] for i in range(8)], np.int64)
    full = np.zeros((WIDTH, WIDTH))
    full[np.arange(8), 2 * np.arange(8)] = numpy_helper.to_array(values)
    nodes = [
        node("Gather", ["s", "ids"], ["a"]),
        node("Gather", ["full", "ids"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    made = model(nodes, [IDS], [tensor("y", ["batch", WIDTH])], [constant("full", full if hazard else full + full.T)])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [WIDTH, WIDTH]))
    return save(made, folder)


def _tied(weights: list[onnx.TensorProto], middle: list[onnx.NodeProto], folder: Path) -> Path:
    nodes = [node("Gather", ["table", "ids"], ["e"]), *middle]
    return save(
        model(nodes, [IDS], [tensor("y", ["batch", VOCABULARY])], [weight("table", VOCABULARY, WIDTH), *weights]),
        folder,
    )


def transposed_copy(folder: Path, hazard: bool) -> Path:
    """The head is the embedding's transpose, stored again; in the twin it is a matrix of its own."""
    table = numpy_helper.to_array(weight("table", VOCABULARY, WIDTH))
    head = constant("head", table.T) if hazard else weight("head", WIDTH, VOCABULARY)
    return _tied([head], [node("MatMul", ["e", "head"], ["y"])], folder)


def behind_transpose(folder: Path, hazard: bool) -> Path:
    by_transpose = [node("Transpose", ["table"], ["t"], perm=[1, 0]), node("MatMul", ["e", "t"], ["y"])]
    untied = [node("MatMul", ["e", "head"], ["y"])]
    return _tied([] if hazard else [weight("head", WIDTH, VOCABULARY)], by_transpose if hazard else untied, folder)


def _external(folder: Path, location: str) -> Path:
    """The plainest model with its weight in another file; the data is written where it belongs in any case."""
    made = linear()
    raw = made.graph.initializer[0].raw_data
    external_data_helper.set_external_data(made.graph.initializer[0], location, offset=0, length=len(raw))
    made.graph.initializer[0].ClearField("raw_data")
    made.graph.initializer[0].data_location = TensorProto.EXTERNAL
    (folder / "data.bin").write_bytes(raw)
    return save(made, folder)


def escaping(folder: Path, hazard: bool) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    path = _external(inner, "../data.bin" if hazard else "data.bin")
    (folder / "data.bin").write_bytes((inner / "data.bin").read_bytes())
    return path


def absolute(folder: Path, hazard: bool) -> Path:
    """The file's whole path is refused even in the folder; out of a subfolder and back in is not."""
    (folder / "inner").mkdir()
    return _external(folder, str(folder / "data.bin") if hazard else "inner/../data.bin")


def escaping_by_link(folder: Path, hazard: bool) -> Path:
    inner = folder / "inner"
    inner.mkdir()
    path = _external(inner, "data.bin")
    if hazard:
        (inner / "data.bin").rename(folder / "data.bin")
        (inner / "data.bin").symlink_to(folder / "data.bin")
    return path


def missing(folder: Path, hazard: bool) -> Path:
    path = _external(folder, "data.bin")
    if hazard:
        (folder / "data.bin").unlink()
    return path


def cut_short(folder: Path, hazard: bool) -> Path:
    path = _external(folder, "data.bin")
    if hazard:
        os.truncate(folder / "data.bin", 100)
    return path


def linked(folder: Path, hazard: bool) -> Path:
    path = _external(folder, "data.bin")
    if hazard:
        (folder / "data.bin").rename(folder / "blob")
        (folder / "data.bin").symlink_to("blob")
    return path


def hard_linked(folder: Path, hazard: bool) -> Path:
    path = _external(folder, "data.bin")
    if hazard:
        os.link(folder / "data.bin", folder / "other")
    return path


def unused(folder: Path, hazard: bool) -> Path:
    made = linear()
    if hazard:
        made.graph.initializer.append(weight("idle", WIDTH, WIDTH))
    return save(made, folder)


def blown_up(folder: Path, hazard: bool) -> Path:
    """A constant of megabytes made of eight bytes; the twin makes it from the input's own size."""
    fill = constant("value", [0.0])
    sizes = constant("sizes", [4096, WIDTH] if hazard else [1, WIDTH], np.int64)
    middle = [
        node("ConstantOfShape", ["sizes"], ["filled"], value=fill),
        node("ReduceSum", ["filled", "axis"], ["sum"], keepdims=1),
        node("Add", ["x", "sum"], ["n"]),
    ]
    return save(chain(middle, "n", [sizes, constant("axis", [0], np.int64)]), folder)


def zeros(folder: Path, hazard: bool) -> Path:
    made = linear()
    if hazard:
        made.graph.initializer[0].CopyFrom(constant("w", np.zeros((WIDTH, WIDTH))))
    return save(made, folder)


HAZARDS = (
    Hazard("TC501", "twice", twice),
    Hazard("TC501", "constants", constants_twice),
    Hazard("TC501", "sparse", sparse_twice),
    Hazard("TC502", "transposed-copy", transposed_copy),
    Hazard("TC503", "behind-transpose", behind_transpose),
    Hazard("TC504", "parent", escaping),
    Hazard("TC504", "absolute", absolute),
    Hazard("TC504", "link", escaping_by_link),
    Hazard("TC505", "missing", missing),
    Hazard("TC505", "cut-short", cut_short),
    Hazard("TC506", "symbolic-link", linked),
    Hazard("TC506", "hard-link", hard_linked),
    Hazard("TC508", "unused", unused),
    Hazard("TC509", "blown-up", blown_up),
    Hazard("TC510", "zeros", zeros),
)
