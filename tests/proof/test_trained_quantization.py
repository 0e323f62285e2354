"""Modules trained with quantization keep their QuantizeLinear and DequantizeLinear, and their results."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # brings the operators of PT2E graphs
from torch import Tensor, nn
from torch.ao import quantization

from tests.proof.planting import manifest_of
from truecast.artifact import Status
from truecast.errors import InputError
from truecast.exporting_modules import export_module
from truecast.proof import modules
from truecast.proof.module_points import Grid, ModulePoint
from truecast.request import Request
from truecast.runtime.integers import largest_code
from truecast.runtime.providers import PRECISE_ENTRIES
from truecast.trace.opening import ModuleSource
from truecast.weights.standard import ACTIVATIONS_KEY

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")

WIDTH, HIDDEN = 64, 96
STEP, MIDDLE = 0.03, 111
EXACT = 1e-5
SATURATES = largest_code() < 127
"""Codes of 8 bits are the author's own here; where this processor's products of them saturate, a session key helps."""
decomposed = torch.ops.quantized_decomposed


class Converted(nn.Module):
    """A linear layer as PT2E's convert leaves it: codes of the weight, and an input that goes through codes."""

    def __init__(self, width: int, outputs: int, rounds: bool = True) -> None:
        super().__init__()
        weight = torch.randn(outputs, width) / width**0.5
        scales = weight.abs().amax(1) / 127
        self.register_buffer("codes", (weight / scales[:, None]).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(outputs, dtype=torch.int64))
        self.bias, self.rounds = nn.Parameter(torch.randn(outputs) / 10), rounds

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.codes, self.scales, self.zeros, 0, -128, 127, torch.int8)
        weight = decomposed.dequantize_per_channel.default(*parts)
        if self.rounds:
            known = (STEP, MIDDLE, 0, 255, torch.uint8)
            x = decomposed.dequantize_per_tensor.default(decomposed.quantize_per_tensor.default(x, *known), *known)
        return nn.functional.linear(x, weight, self.bias)


def converted(rounds: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(Converted(WIDTH, HIDDEN, rounds), nn.GELU(), Converted(HIDDEN, WIDTH, rounds)).eval()


class Stubbed(nn.Module):
    """What torch.ao.quantization.prepare_qat is given."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.up, self.act, self.down = nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        return self.dequant(self.down(self.act(self.up(self.quant(input)))))


def trained(least: int = -127) -> nn.Module:
    """A module after a few steps of training with fake quantization; codes of its weights begin at `least`."""
    torch.manual_seed(0)
    fake, per_channel = quantization.FakeQuantize, quantization.MovingAveragePerChannelMinMaxObserver
    weight = {"quant_min": least, "quant_max": 127, "dtype": torch.qint8, "qscheme": torch.per_channel_symmetric}
    module = Stubbed().train()
    module.qconfig = quantization.QConfig(
        activation=fake.with_args(observer=quantization.MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
        weight=fake.with_args(observer=per_channel, ch_axis=0, **weight),
    )
    quantization.prepare_qat(module, inplace=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        module(torch.randn(4, 5, WIDTH)).pow(2).mean().backward()
        optimizer.step()
    return module.eval()


def one_scale_each() -> nn.Module:
    """The same with a scale for each weight, so that all their zero points are one tensor."""
    torch.manual_seed(0)
    module = Stubbed().train()
    module.qconfig = quantization.get_default_qat_qconfig("qnnpack")
    quantization.prepare_qat(module, inplace=True)
    module(torch.randn(4, 5, WIDTH))
    module.apply(quantization.disable_observer)
    return module.eval()


def source_of(module: nn.Module) -> ModuleSource:
    return ModuleSource(
        module=module, example_inputs={"input": torch.randn(2, 5, WIDTH)}, dynamic={"input": {0: "rows"}}
    )


def optimized(folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of an artifact's graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "optimized.onnx"), 3
    ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(str(folder / "optimized.onnx"), load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


def outputs(folder: Path, x: np.ndarray, entries: dict[str, str], optimized: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if not optimized:  # without the optimizer, codes are decoded before they are multiplied
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def proven(module: nn.Module, folder: Path) -> Path:
    made = export_module(source_of(module), folder / "out", Request(precision="fp32"))
    assert manifest_of(made).certificate.status is Status.PROVEN
    return made


def test_a_converted_module_keeps_its_codes_and_multiplies_integers(tmp_path: Path) -> None:
    folder = proven(converted(), tmp_path)
    kinds = Counter(node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node)
    assert kinds["QuantizeLinear"] == 2 and kinds["DequantizeLinear"] == 4
    codes = {i.name: i.data_type for i in onnx.load(str(folder / "model.onnx")).graph.initializer}
    assert codes["0.codes"] == codes["2.codes"] == onnx.TensorProto.INT8
    assert optimized(folder)["MatMulIntegerToFloat"] == 2
    assert manifest_of(folder).graph.session_entries == (PRECISE_ENTRIES if SATURATES else {})


def test_a_module_with_fake_quantization_gets_standard_operators(tmp_path: Path) -> None:
    module = trained()
    module.apply(quantization.disable_observer)
    manifest = manifest_of(folder := proven(module, tmp_path))
    assert manifest.graph.lowered["fake quantization"] == 5
    kinds = Counter(node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node)
    assert kinds["QuantizeLinear"] == kinds["DequantizeLinear"] == 5


def test_weights_with_one_zero_point_are_proven(tmp_path: Path) -> None:
    proven(one_scale_each(), tmp_path)


@pytest.mark.parametrize("planted", [False, True])
def test_a_step_at_the_border_of_two_codes_is_excused_and_another_bias_is_not(planted: bool, tmp_path: Path) -> None:
    """Inputs that lie between two codes: float64 leaves them there, and a division is not torch's multiplication."""
    module = trained()
    module.apply(quantization.disable_observer)
    folder = proven(module, tmp_path)
    scale, zero = module.quant.activation_post_process.scale, module.quant.activation_post_process.zero_point
    borders = (torch.arange(2 * 5 * WIDTH).reshape(2, 5, WIDTH) % 200 + 0.5 - zero) * scale
    if planted:
        module.down.bias.data += 5
    source = replace(source_of(module), example_inputs={"input": borders})
    point = ModulePoint("borders", (borders,))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "module_grid", lambda author: Grid((point,), ()))
        certificate = modules.prove_module(folder, source, manifest_of(folder))
    failed = {check.name for check in certificate.checks if not check.passed and check.tier == "parity"}
    assert bool(failed) == planted


def test_codes_of_a_narrower_range_are_clamped(tmp_path: Path) -> None:
    module = trained(least=-64)
    module.apply(quantization.disable_observer)
    with torch.no_grad():
        module.up.weight *= 3  # beyond what was observed
    folder = export_module(source_of(module), tmp_path / "out", Request(precision="fp32", verify=False))
    x = torch.randn(3, 5, WIDTH)
    want = module(x).detach().numpy()
    got = outputs(folder, x.numpy(), manifest_of(folder).graph.session_entries)
    np.testing.assert_allclose(got, want, atol=EXACT)


def test_inputs_that_are_not_rounded_stay_so(tmp_path: Path) -> None:
    module = converted(rounds=False)
    folder = export_module(source_of(module), tmp_path / "out", Request(precision="fp32"))
    manifest, x = manifest_of(folder), torch.randn(3, 5, WIDTH)
    assert manifest.certificate.status is Status.PROVEN
    assert manifest.graph.session_entries == {ACTIVATIONS_KEY: "0", **(PRECISE_ENTRIES if SATURATES else {})}
    want = module(x).detach().numpy()
    np.testing.assert_allclose(outputs(folder, x.numpy(), manifest.graph.session_entries), want, atol=EXACT)
    assert np.abs(outputs(folder, x.numpy(), {}) - want).max() > 100 * EXACT  # what the key prevents


def test_a_module_that_still_observes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="called twice with the same inputs gives two results"):
        export_module(source_of(trained()), tmp_path / "out", Request(precision="fp32"))
    assert not (tmp_path / "out").exists()


def test_fake_quantization_that_is_switched_off_leaves_floats(tmp_path: Path) -> None:
    module = trained()
    module.apply(quantization.disable_observer)
    module.apply(quantization.disable_fake_quant)
    folder = export_module(source_of(module), tmp_path / "out", Request(precision="fp32"))
    assert manifest_of(folder).certificate.status is Status.PROVEN
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(str(folder / "model.onnx")).graph.node}
