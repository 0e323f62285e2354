"""What the target `portable` writes gives the same numbers in OpenVINO; run where openvino is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.encoders import classifier
from tests.tiny import tiny_checkpoint

openvino = pytest.importorskip(
    "openvino", reason="OpenVINO is not installed: pip install 'truecast[openvino]', or make nightly"
)

DATA = Path(__file__).parents[1] / "data"
SIZES = {"batch_size": 2, "sequence_length": 7, "past_sequence_length": 3, "total_sequence_length": 10}
SAME = 1e-5
"""Of an output's largest value: what float32 sums in another order leave."""


def decoder(folder: Path) -> Path:
    return tiny_checkpoint(BY_NAME["llama_tied"], folder)


def stored(name: str) -> Callable[[Path], Path]:
    return lambda folder: DATA / name


CASES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "decoder, floats": (decoder, "fp32"),
    "decoder, 8 bits": (decoder, "int8"),
    "decoder, 4 bits": (decoder, "int4"),
    "decoder, 2 bits of its own": (stored("auto-round-gptq-2bit-asym"), "as-is"),
    "decoder, a table of codes": (stored("bitsandbytes-nf4"), "as-is"),
    "encoder, floats": (classifier, "fp32"),
    "encoder, 8 bits": (classifier, "int8"),
    "encoder, 4 bits": (classifier, "int4"),
}


@pytest.mark.parametrize("name", CASES)
def test_openvino_gives_the_numbers_of_exact_products(name: str, tmp_path: Path) -> None:
    make, precision = CASES[name]
    source = make(tmp_path / "source")
    truecast.export(source, tmp_path / "out", target="portable", precision=precision, verify=False)
    file = tmp_path / "out" / "model.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # decodes before it multiplies
    options.log_severity_level = 3
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    fed = {node.name: made(node) for node in session.get_inputs()}
    outputs = [node.name for node in session.get_outputs()]
    got = computed(file, fed)
    for output, want in zip(outputs, session.run(outputs, fed), strict=True):
        assert np.abs(got[output] - want).max() <= SAME * np.abs(want).max(), output


def made(node: Any) -> np.ndarray:
    """Values of an input: tokens, a mask of ones, positions behind the cache, or keys and values."""
    shape = [size if isinstance(size, int) else SIZES[size] for size in node.shape]
    numbers = np.random.default_rng(0)
    if node.name == "position_ids":
        return np.tile(np.arange(3, 10), (2, 1))
    if node.name in ("attention_mask", "token_type_ids"):
        return np.full(shape, int(node.name == "attention_mask"), np.int64)
    if node.type == "tensor(int64)":
        return numbers.integers(0, 200, shape)
    return numbers.standard_normal(shape).astype(np.float32)


def computed(file: Path, fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenVINO's outputs by name; what has a default is fed it, because OpenVINO takes it for an input."""
    model = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    defaults = {"num_logits_to_keep": np.array(1, np.int64)}
    names = [port.get_any_name() for port in model.inputs]
    results = model({name: fed.get(name, defaults.get(name)) for name in names})
    return {port.get_any_name(): results[port] for port in model.outputs}
