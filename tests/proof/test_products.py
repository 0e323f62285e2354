"""Exact products: their kernels are held to NumPy, and plain products of the decoded weights take their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import psutil
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.conftest import Artifact
from tests.proof.planting import change_graph, failed, manifest_of, reprove
from tests.tiny import tiny_checkpoint
from truecast.proof import products
from truecast.proof.held import load_graph
from truecast.proof.parity import graph_logits
from truecast.proof.points import Limits, Point, grid
from truecast.proof.products import NAME, ROWS, Products, takes_int8
from truecast.proof.sessions import open_decoder, session_of

CASE, FILE = "gemma3_text", "model.onnx"
Spoil = Callable[[np.ndarray], None]


def graph_of(folder: Path) -> ir.Model:
    return load_graph(folder, FILE)


def checked(folder: Path, **options: Any) -> Products:
    found = Products.of(graph_of(folder), **options)
    assert [check.passed for check in found.checks(folder, FILE)] == [True]
    return found


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def in_session(monkeypatch: pytest.MonkeyPatch, rows: int, spoil: Spoil) -> None:
    """Makes the kernels wrong in the run that has so many rows: the last product's results are spoiled."""

    def opened(model: ir.Model, folder: Path) -> SimpleNamespace:
        session = session_of(model, folder)

        def run(names: list[str], given: dict[str, np.ndarray]) -> list[np.ndarray]:
            results = session.run(names, given)
            if len(results[-1]) == rows:
                spoil(results[-1])
            return results

        return SimpleNamespace(run=run)

    monkeypatch.setattr(products, "session_of", opened)


def one_number(results: np.ndarray) -> None:
    """A five-thousandth of the row's largest, in the last column of the last row."""
    results[-1, -1] += np.abs(results[-1]).max() / 5000


def one_nan(results: np.ndarray) -> None:
    results[0, 0] = np.nan


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("spoil", [one_number, one_nan], ids=["a number that is off a little", "NaN"])
def test_a_kernel_that_is_wrong_for_one_kind_of_run_is_found(
    rows: int, spoil: Spoil, made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_session(monkeypatch, rows, spoil)
    found = failed(reprove(made(CASE, "int4")))
    assert list(found) == [NAME]
    assert "row" in found[NAME].detail


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_code_that_is_read_otherwise_than_the_kernel_reads_it_is_found(
    precision: str, made: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = products.factor_rows

    def one_step(node: ir.Node) -> Any:
        """The last weight of every row is one code higher."""
        read, step = real(node), products.factor_scales(node)

        def rows(start: int, stop: int) -> np.ndarray:
            values = read(start, stop).copy()
            values[:, -1] += step(start, stop).reshape(stop - start, -1)[:, -1]
            return values

        return rows

    monkeypatch.setattr(products, "factor_rows", one_step)
    folder = made(CASE, precision)
    assert [check.passed for check in Products.of(graph_of(folder)).checks(folder, FILE)] == [False]


@pytest.fixture
def point() -> Point:
    return next(p for p in grid(Limits("any", False, 300, 128, (), (), 10**6, 4))[0] if p.name == "left padding")


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_plain_products_give_what_the_kernels_give(precision: str, made: Artifact, point: Point) -> None:
    folder = made(CASE, precision)
    info, found, model = manifest_of(folder).graph, checked(folder), graph_of(folder)
    found.put(model)
    assert "MatMulNBits" not in operators(model)
    plain, kernels = (open_decoder(folder, info, exact=True, products=put) for put in (found.put, None))
    for got, want in zip(graph_logits(plain, point), graph_logits(kernels, point), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()))


def test_a_weight_that_is_known_is_not_kept_twice(made: Artifact) -> None:
    folder = made(CASE, "int4")
    name, weight = next(iter(checked(folder).decoded.items()))
    assert checked(folder, known=[weight]).decoded[name] is weight
    other = weight.copy()
    other[-1, -1] = np.nextafter(other[-1, -1], np.float32(np.inf))
    assert checked(folder, known=[other]).decoded[name] is not other


def test_without_memory_the_kernels_decode_at_every_run(made: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(CASE, "int4")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    found, model = checked(folder), graph_of(folder)
    assert not found.decoded and not found.put(model)
    levels = {node.attributes["accuracy_level"].as_int() for node in model.graph if node.op_type == "MatMulNBits"}
    assert levels == {0}
    assert not failed(reprove(folder))


def test_a_graph_that_takes_floats_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own kernels are the exact ones then, and follow the tight rule at every point."""
    source, folder = tiny_checkpoint(BY_NAME["qwen2"], tmp_path / "source"), tmp_path / "out"
    truecast.export(source, folder, precision="int4", activations="float", verify=False)
    info = manifest_of(folder).graph
    assert not takes_int8(graph_of(folder), info)
    certificate = reprove(folder)
    names = [check.name for check in certificate.checks]
    assert not failed(certificate) and NAME not in names
    assert any(name.startswith("exact products") for name in names)
    change_graph(folder, lambda model: _round_activations(model, 0))
    assert takes_int8(graph_of(folder), info)


def _round_activations(model: ir.Model, index: int) -> None:
    nodes = [node for node in model.graph if node.op_type == "MatMulNBits"]
    nodes[index].attributes.add(ir.AttrInt64("accuracy_level", 4))


def test_what_ships_with_int8_activations_takes_int8(made: Artifact) -> None:
    folder = made(CASE, "int4")
    assert takes_int8(graph_of(folder), manifest_of(folder).graph)
