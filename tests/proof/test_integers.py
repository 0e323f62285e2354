"""Products of integers are proven: what they cost, and every planted error in one is caught."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from tests.proof.planting import change_data, change_graph, change_manifest, failed, manifest_of
from tests.runtime.test_integers import saturating
from truecast.artifact import Certificate
from truecast.errors import InputError
from truecast.exporting_modules import export_module
from truecast.proof.held import load_graph
from truecast.proof.integer_checks import probe_check, quantization_checks
from truecast.proof.integers import float_products, integer_products
from truecast.proof.modules import prove_module
from truecast.request import Request
from truecast.runtime.integers import largest_code
from truecast.trace.opening import ModuleSource

WIDTH, HIDDEN = 64, 96
PRECISIONS = ("int8-dynamic", "int8-static")
CODES, SCALES, FACTORS = (f"up.weight.{part}" for part in ("channel_codes", "channel_scales", "input_factors"))
VALUES, COVERAGE = "weights are the checkpoint's", "weights quantized as asked"
PRODUCTS, SUMS = "products of integers", "integer sums of this processor"


class Blocks(nn.Module):
    """Two linear leaves around an activation, and a product with a parameter that is no leaf."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH) / WIDTH**0.5)

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states + self.down(nn.functional.gelu(self.up(states))), self.mix)


SOURCE = ModuleSource(
    module=Blocks().eval(),
    example_inputs={"states": torch.randn(2, 5, WIDTH)},
    dynamic={"states": {0: "rows", 1: "steps"}},
)


def exported(folder: Path, precision: str, far: bool = False, **changes: object) -> Path:
    """The module as an artifact that is not proven yet; `far` shows it inputs with a channel far beyond the others."""
    examples, states = folder / "examples.npz", np.random.default_rng(0).normal(size=(16, 9, WIDTH)).astype(np.float32)
    states[..., 3] *= 100 if far else 1
    np.savez(examples, states=states)
    calibration = examples if precision == "int8-static" or far else None
    request = Request(precision=precision, calibration=calibration, **changes, verify=False)  # type: ignore[arg-type]
    return export_module(SOURCE, folder / "out", request)


@pytest.fixture(scope="module", params=PRECISIONS)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("integers"), request.param)


@pytest.fixture
def artifact(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def proven(folder: Path) -> Certificate:
    return prove_module(folder, SOURCE, manifest_of(folder))


def test_an_artifact_of_integers_is_proven_and_says_what_it_costs(original: Path) -> None:
    certificate = proven(original)
    checks = {check.name: check for check in certificate.checks}
    assert not failed(certificate)
    assert checks[COVERAGE].measured == 1.0 and checks[SUMS].measured == 0
    assert checks[PRODUCTS].detail.startswith("3 products")
    exact = next(check for name, check in checks.items() if name.startswith("exact products against"))
    assert exact.measured is not None and exact.measured < 1e-5
    price = next(check for name, check in checks.items() if name.startswith("price of the activations"))
    assert price.measured is not None and price.measured > 0.999 and "the least 1.00000" not in price.detail
    noise = certificate.signal_to_noise
    assert set(noise) == {"up.weight", "down.weight", "mix"}
    assert all(ratio is not None and 35 < ratio < 50 for ratio in noise.values())  # 8 bits


def swap_scales(data: np.ndarray) -> None:
    scales = data.view(np.float32)
    ends = [int(scales.argmin()), int(scales.argmax())]
    scales[ends] = scales[ends[::-1]]


def flip_high_bit(data: np.ndarray) -> None:
    data[3] ^= 0x40


@pytest.mark.parametrize(("initializer", "change"), [(SCALES, swap_scales), (CODES, flip_high_bit)])
def test_a_wrong_byte_of_a_weight_is_caught(
    initializer: str, change: Callable[[np.ndarray], None], artifact: Path
) -> None:
    change_data(artifact, initializer, change)
    check = failed(proven(artifact))[VALUES]
    assert "up.weight" in check.detail


def test_factors_of_an_input_are_read_and_a_wrong_one_is_caught(tmp_path: Path) -> None:
    folder = exported(tmp_path, "int8-dynamic", far=True)
    assert manifest_of(folder).settings["outlying_channels"] == "from the calibration file"
    certificate = proven(folder)
    assert not failed(certificate)
    assert next(c for c in certificate.checks if c.name == PRODUCTS).detail.startswith("3 products")

    def double(data: np.ndarray) -> None:
        data.view(np.float32)[3] *= 2

    change_data(folder, FACTORS, double)
    assert "up.weight" in failed(proven(folder))[VALUES].detail


def test_a_kernel_that_saturates_is_caught(original: Path) -> None:
    manifest, model = manifest_of(original), load_graph(original, "model.onnx")
    manifest = manifest.model_copy(update={"settings": manifest.settings | {"largest_code": 127}})
    checks = quantization_checks(model, manifest, {}, {}, saturating)
    assert not next(check for check in checks if check.name == SUMS).passed
    assert probe_check(manifest.model_copy(update={"settings": {"largest_code": 63}}), saturating).passed


def test_a_linear_left_in_float_is_caught_and_named(tmp_path: Path) -> None:
    folder = exported(tmp_path, "int8-dynamic", keep=("down=fp32",))
    assert COVERAGE not in failed(proven(folder))
    change_manifest(folder, settings={"largest_code": manifest_of(folder).settings["largest_code"]})
    check = failed(proven(folder))[COVERAGE]
    assert "down.weight" in check.detail
    kept, rest = WIDTH * HIDDEN, WIDTH * HIDDEN + WIDTH * WIDTH
    assert check.measured == pytest.approx(rest / (kept + rest), rel=1e-3)


def test_codes_larger_than_the_manifest_says_are_caught(artifact: Path) -> None:
    top = largest_code()
    change_manifest(artifact, settings=manifest_of(artifact).settings | {"largest_code": top // 2})
    assert f"codes up to {top}" in failed(proven(artifact))[PRODUCTS].detail


def first(model: ir.Model, kind: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == kind)


def other_scale(model: ir.Model) -> None:
    """The sums of one product get the scale of another input."""
    scales = [node.outputs[1] for node in model.graph if node.op_type == "DynamicQuantizeLinear"]
    factor = next(node for node in model.graph if node.op_type == "Mul" and scales[1] in node.inputs)
    factor.replace_input_with(list(factor.inputs).index(scales[1]), scales[0])


def no_zero_point(model: ir.Model) -> None:
    first(model, "MatMulInteger").resize_inputs(2)


def doubled_scale(model: ir.Model) -> None:
    """Only QuantizeLinear's, so that what is decoded is another number."""
    node = first(model, "QuantizeLinear")
    two = ir.node("Constant", [], {"value": ir.tensor(np.array(2, np.float32))})
    twice = ir.node("Mul", [node.inputs[1], two.outputs[0]])
    model.graph.insert_before(node, [two, twice])
    node.replace_input_with(1, twice.outputs[0])


def narrow_range(model: ir.Model) -> None:
    """A range a hundredth as wide: nearly every input is cut."""
    scale = first(model, "QuantizeLinear").inputs[1]
    producer = None if scale is None else scale.producer()
    assert producer is not None
    value = producer.attributes["value"].as_tensor().numpy() / 100
    producer.attributes.add(ir.AttrTensor("value", ir.tensor(value.astype(np.float32))))


@pytest.mark.parametrize("change", [other_scale, no_zero_point])
def test_a_wrong_measured_product_is_caught(change: Callable[[ir.Model], None], tmp_path: Path) -> None:
    folder = exported(tmp_path, "int8-dynamic")
    change_graph(folder, change)
    faults = failed(proven(folder))
    assert PRODUCTS in faults and VALUES in faults


@pytest.mark.parametrize("change", [doubled_scale, narrow_range])
def test_a_wrong_known_range_is_caught(change: Callable[[ir.Model], None], tmp_path: Path) -> None:
    folder = exported(tmp_path, "int8-static")
    change_graph(folder, change)
    faults = failed(proven(folder))
    assert any(name.startswith("price of the activations") for name in faults) or VALUES in faults


def test_the_twin_of_floats_has_the_weights_of_the_file(original: Path) -> None:
    model = load_graph(original, "model.onnx")
    assert len(integer_products(model)) == float_products(model) == 3
    RemoveUnusedNodesPass()(model)
    assert not {"MatMulInteger", "DequantizeLinear", "QuantizeLinear"} & {node.op_type for node in model.graph}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"other": np.zeros((2, 3, WIDTH), np.float32)}, "has no array 'states'"),
        ({"states": np.zeros((0, 3, WIDTH), np.float32)}, "holds no usable rows"),
        ({"states": np.float32(1)}, "holds no usable rows"),
        ({"states": np.full((1, 3, WIDTH), np.nan, np.float32)}, "NaN or infinity"),
        ({"states": np.zeros((1, 3, WIDTH + 1), np.float32)}, "does not take a calibration example"),
    ],
)
def test_a_calibration_file_without_usable_rows_is_refused(
    arrays: dict[str, np.ndarray], sentence: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    request = Request(precision="int8-static", calibration=tmp_path / "rows.npz", verify=False)
    with pytest.raises(InputError, match=sentence) as caught:
        export_module(SOURCE, tmp_path / "out", request)
    assert str(caught.value).endswith(".") and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".calibration*"))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.npz").write_bytes(b"no archive")
    request = Request(precision="int8-static", calibration=tmp_path / "rows.npz", verify=False)
    with pytest.raises(InputError, match=r"no \.npz file"):
        export_module(SOURCE, tmp_path / "out", request)


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_every_calibration_method_gives_a_proven_artifact(method: str, tmp_path: Path) -> None:
    folder = exported(tmp_path, "int8-static", calibration_method=method)
    assert not failed(proven(folder))
    assert manifest_of(folder).settings["calibration_method"] == method


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"precision": "int8-static"}, "add --calibration FILE"),
        ({"precision": "int8-dynamic", "calibration_method": "entropy"}, "is for int8-static"),
        ({"precision": "int8-static", "calibration_method": "median"}, "There is no calibration method 'median'"),
        ({"precision": "int8-dynamic", "method": "hqq"}, "makes codes in blocks"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(asked: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        export_module(SOURCE, tmp_path / "out", Request(**asked))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
