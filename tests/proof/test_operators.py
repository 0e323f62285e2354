"""The proof's own operators against ONNX Runtime's kernels: two independent readings of one specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from truecast.proof.operators import EVALUATED, dequantize, mixture, unpack_codes

CONTRIB = "com.microsoft"
ROUNDING = 2e-6


def both(
    kind: str, inputs: dict[str, np.ndarray | None], outputs: int = 1, domain: str = CONTRIB, **attributes: Any
) -> None:
    """Runs one node in ONNX Runtime and in the evaluator, and compares the outputs."""
    names = [name if array is not None else "" for name, array in inputs.items()]
    given = {name: array for name, array in inputs.items() if array is not None}
    results = [f"y{i}" for i in range(outputs)]
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in given.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, names, results, domain=domain, **attributes)],
        "one",
        values,
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in results],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, given)
    want = ReferenceEvaluator(model, new_ops=list(EVALUATED)).run(None, given)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING * max(1.0, np.abs(b).max()))


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def floats(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 16), (8, 32)])
def test_products_of_blocks(bits: int, block: int, zeros: bool, random: np.random.Generator) -> None:
    n, k = 24, 80
    blocks = -(-k // block)
    codes = random.integers(0, 256, (n, blocks, block * bits // 8), dtype=np.uint8)
    points = random.integers(0, 256, (n, -(-blocks * bits // 8)), dtype=np.uint8) if zeros else None
    inputs = {"x": floats(random, 3, k), "b": codes, "s": floats(random, n, blocks), "z": points}
    bias = {"g": None, "c": floats(random, n)}
    both("MatMulNBits", inputs | bias, K=k, N=n, bits=bits, block_size=block, accuracy_level=0)


def test_rows_of_a_quantized_table(random: np.random.Generator) -> None:
    table = random.integers(0, 256, (11, 32), dtype=np.uint8)
    inputs = {"t": table, "i": np.array([[3, 0, 10]]), "s": floats(random, 11, 2)}
    both("GatherBlockQuantized", inputs, bits=4, block_size=32, gather_axis=0, quantize_axis=1)


def test_fused_product(random: np.random.Generator) -> None:
    both("FusedMatMul", {"a": floats(random, 2, 3, 8), "b": floats(random, 5, 8)}, transB=1, alpha=0.5)


def test_norm(random: np.random.Generator) -> None:
    inputs = {"x": 0.01 * floats(random, 2, 3, 8), "s": floats(random, 8)}
    both("SimplifiedLayerNormalization", inputs, domain="", epsilon=3e-3, axis=-1)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partial", [0, 8])
def test_rotation(interleaved: int, partial: int, random: np.random.Generator) -> None:
    pairs = (partial or 16) // 2
    inputs = {"x": floats(random, 2, 5, 48), "p": random.integers(0, 9, (2, 5))}
    tables = {"c": floats(random, 9, pairs), "s": floats(random, 9, pairs)}
    both("RotaryEmbedding", inputs | tables, interleaved=interleaved, num_heads=3, rotary_embedding_dim=partial)


@pytest.mark.parametrize("past", [0, 6])
@pytest.mark.parametrize("window", [-1, 3])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extras", ["none", "bias", "rotary", "softcap"])
def test_attention(past: int, window: int, packed: bool, extras: str, random: np.random.Generator) -> None:
    batch, new, heads, groups, width = (2, 1, 4, 2, 16) if past else (2, 5, 4, 2, 16)
    total = past + new
    states = {"q": floats(random, batch, new, (heads + 2 * groups) * width), "k": None, "v": None}
    if not packed:
        parts = {"q": heads, "k": groups, "v": groups}
        states = {name: floats(random, batch, new, n * width) for name, n in parts.items()}
    cache = {name: floats(random, batch, groups, past, width) for name in ("pk", "pv")}
    lengths = {"l": np.full(batch, total - 1, np.int32), "t": np.array(total, np.int32)}
    more: dict[str, np.ndarray | None] = {}
    attributes: dict[str, Any] = {"scale": 0.2, "local_window_size": window}
    if extras == "rotary":
        more = {"c": floats(random, 32, width // 2), "s": floats(random, 32, width // 2)}
        attributes |= {"do_rotary": 1}
    elif extras == "bias":
        more = {"c": None, "s": None, "p": None, "b": floats(random, batch, 1, new, total)}
    elif extras == "softcap":
        attributes |= {"softcap": 1.5}
    both("GroupQueryAttention", states | cache | lengths | more, 3, num_heads=heads, kv_num_heads=groups, **attributes)


def test_codes_are_unpacked_lowest_bits_first() -> None:
    assert unpack_codes(np.array([[0xA5, 0x3C]], np.uint8), 4).tolist() == [[5, 10, 12, 3]]


def test_a_code_stands_for_its_distance_from_the_zero_point() -> None:
    codes, scales = np.array([[[0x80, 0xF7]]], np.uint8), np.array([[0.5]], np.float32)
    assert dequantize(codes, scales, 4, 4, 3).tolist() == [[-4.0, 0.0, -0.5]]


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_a_kernel_may_take_either_of_two_codes_that_a_value_lies_between(factor: float) -> None:
    x, share = np.array([[127.0, 7.0, 8.0, 0.0]], np.float32), np.array([[0.25]], np.float32)
    first, second = np.diag([1, factor, 1, 1]).astype(np.float32), np.arange(16, dtype=np.float32).reshape(4, 4) - 9
    _, leeway = mixture(x, share, lambda number: (first, None, second, None), {"activation_type": "identity"}, 4)
    between = x[0, 1] * factor % 1 == 0.5
    np.testing.assert_allclose(leeway, [0.25 * between * np.abs(second[:, 1])])
