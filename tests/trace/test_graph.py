"""The exported graph: its interface, its leanness, its names, and that stamping layers changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from tests.tiny import stored_model
from tests.trace.conftest import Exported
from tests.trace.running import load, logits, session, step, tokens
from truecast.trace import decoder

CLOSE = 1e-4
"""Of logits of size 5 in float32; right graphs are within 1e-5."""

LLAMA = {"case": "llama", "num_hidden_layers": 3}
GEMMA = {"case": "gemma3_text"}


@contextmanager
def every_layer_traced() -> Iterator[None]:
    """Exports as if no list of layers had been found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "find_layers", lambda model, count: None)
        yield


def reference(artifact: Path, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        result: np.ndarray = stored_model(artifact.with_name("checkpoint"))(input_ids=torch.tensor(ids)).logits.numpy()
    return result


# Interface ------------------------------------------------------------------------------------------------------------


def declared(values: list[ir.Value]) -> dict[str, list[int | str]]:
    return {
        value.name or "": [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()]
        for value in values
    }


def cache(layers: int, prefix: str, length: str) -> dict[str, list[int | str]]:
    names = [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    return {name: ["batch_size", 2, length, 16] for name in names}


def test_inputs_and_outputs_have_the_promised_names_and_dimensions(exported: Exported) -> None:
    graph = load(exported(**LLAMA)).graph
    assert list(declared(list(graph.inputs)).items()) == [
        ("input_ids", ["batch_size", "sequence_length"]),
        ("attention_mask", ["batch_size", "total_sequence_length"]),
        ("position_ids", ["batch_size", "sequence_length"]),
        *cache(3, "past_key_values", "past_sequence_length").items(),
        ("num_logits_to_keep", []),
    ]
    assert list(declared(list(graph.outputs)).items()) == [
        ("logits", ["batch_size", "num_logits", 320]),
        *cache(3, "present", "total_sequence_length").items(),
    ]


def test_numbers_are_int64_ids_and_float32_states(exported: Exported) -> None:
    graph = load(exported(**LLAMA)).graph
    for value in (*graph.inputs, *graph.outputs):
        states = value.name.startswith(("past", "present", "logits"))
        assert value.dtype == (ir.DataType.FLOAT if states else ir.DataType.INT64)


def test_the_number_of_logits_may_be_overridden_but_need_not_be_given(exported: Exported) -> None:
    model = session(exported(**LLAMA))
    assert [value.name for value in model.get_overridable_initializers()] == ["num_logits_to_keep"]
    assert "num_logits_to_keep" not in {value.name for value in model.get_inputs()}


@pytest.mark.parametrize(("keep", "kept"), [(None, 1), (1, 1), (3, 3), (5, 5), (0, 5)])
def test_the_last_logits_are_kept(exported: Exported, keep: int | None, kept: int) -> None:
    artifact, ids = exported(**LLAMA), tokens(2, 5)
    got, everything = logits(artifact, ids, keep=keep), logits(artifact, ids)
    assert everything.shape == (2, 5, 320)
    np.testing.assert_allclose(got, everything[:, 5 - kept :], atol=CLOSE)


def test_a_target_with_single_logits_takes_each_rows_last_real_token(exported: Exported) -> None:
    artifact, ids = exported("llama", "genai"), tokens(3, 6)
    lengths = [2, 6, 3]
    mask = (np.arange(6) < np.array(lengths)[:, None]).astype(np.int64)
    got = logits(artifact, ids, mask, keep=None)
    assert got.shape == (3, 1, 320)
    for row, length in enumerate(lengths):
        alone = reference(artifact, ids[row : row + 1, :length])[0, -1]
        np.testing.assert_allclose(got[row, 0], alone, atol=CLOSE)


def test_a_target_with_single_logits_gives_more_when_asked(exported: Exported) -> None:
    artifact, ids = exported("llama", "genai"), tokens(2, 6)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    everything, two = logits(artifact, ids, mask, keep=0), logits(artifact, ids, mask, keep=2)
    np.testing.assert_allclose(everything[1], reference(artifact, ids[1:])[0], atol=CLOSE)
    np.testing.assert_allclose(two[0], everything[0, 2:4], atol=CLOSE)
    np.testing.assert_allclose(two[1], everything[1, 4:6], atol=CLOSE)


def test_a_target_with_single_logits_declares_one(exported: Exported) -> None:
    outputs = declared(list(load(exported("llama", "genai")).graph.outputs))
    assert outputs["logits"] == ["batch_size", 1, 320]


def test_right_padding_needs_no_positions(exported: Exported) -> None:
    assert "position_ids" not in declared(list(load(exported("llama", "genai")).graph.inputs))


# Leanness -------------------------------------------------------------------------------------------------------------

ROTATION = {"RotaryEmbedding": 2}
LLAMA_LAYER = {"SimplifiedLayerNormalization": 2, "GroupQueryAttention": 1, "Sigmoid": 1, "Mul": 2, "Add": 2}
GEMMA_LAYER = {"SimplifiedLayerNormalization": 6, "GroupQueryAttention": 1, "Gelu": 1, "Mul": 1, "Add": 2}
PER_HEAD_NORMS = {"Reshape": 4}
"""Queries and keys to heads and back, around their norms."""
ONE_PLUS_WEIGHT = {"Add": 6}
"""Of constants: ONNX Runtime folds them when it loads the graph."""


def operators_of(artifact: Path, layer: str) -> Counter[str]:
    """How often each operator occurs in a layer, Constants aside."""
    names = [(node.name or "", node.op_type) for node in load(artifact).graph]
    own = [kind for name, kind in names if name == layer or name.startswith((f"{layer}.", f"{layer}/"))]
    return Counter(kind for kind in own if kind != "Constant")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LLAMA, [LLAMA_LAYER, ROTATION, {"MatMul": 7}]),
        (LLAMA | {"precision": "int4"}, [LLAMA_LAYER, ROTATION, {"MatMulNBits": 4, "Split": 2}]),
        ({"case": "llama", "target": "genai"}, [LLAMA_LAYER, {"MatMul": 7}]),
        (GEMMA, [GEMMA_LAYER, ROTATION, PER_HEAD_NORMS, ONE_PLUS_WEIGHT, {"MatMul": 7}]),
    ],
    ids=["llama", "llama int4", "llama genai", "gemma3"],
)
def test_a_layer_holds_these_operators_and_no_more(
    exported: Exported, options: dict[str, str], expected: list[dict[str, int]]
) -> None:
    layer = "model.layers.0" if "target" in options else "model.layers.1"
    assert operators_of(exported(**options), layer) == sum(map(Counter, expected), Counter[str]())


def kinds_of(artifact: Path) -> Counter[str]:
    return Counter(node.op_type for node in load(artifact).graph)


def test_what_all_layers_share_is_computed_once(exported: Exported) -> None:
    counts = kinds_of(exported(**LLAMA))
    assert (counts["Cos"], counts["Sin"], counts["Range"], counts["Expand"]) == (1, 1, 1, 2)


def test_a_model_with_two_kinds_of_rotation_has_two_tables(exported: Exported) -> None:
    counts = kinds_of(exported(**GEMMA))
    assert (counts["Cos"], counts["Sin"]) == (2, 2)


# Form -----------------------------------------------------------------------------------------------------------------

ONNXRUNTIMES_OWN = "SimplifiedLayerNormalization"
"""ONNX Runtime registers it in the standard domain, where ONNX has none of that name."""

every_artifact = pytest.mark.parametrize(
    "options",
    [LLAMA, GEMMA, {"case": "llama", "target": "genai"}, LLAMA | {"precision": "int4"}],
    ids=["llama", "gemma3", "llama genai", "llama int4"],
)


@every_artifact
def test_the_graph_is_onnx_of_the_promised_versions(exported: Exported, options: dict[str, str]) -> None:
    model = load(exported(**options))
    assert model.opset_imports == {"": 21, "com.microsoft": 1}
    assert model.ir_version == 10
    standard = {node.op_type for node in model.graph if node.domain == ""} - {ONNXRUNTIMES_OWN}
    assert all(onnx.defs.has(kind) for kind in standard)


@every_artifact
def test_no_value_is_a_double(exported: Exported, options: dict[str, str]) -> None:
    model = onnx.load(exported(**options) / "model.onnx", load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {tensor.data_type for tensor in inferred.initializer}
    kinds |= {value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input, *inferred.output)}
    kinds |= {attribute.i for node in inferred.node for attribute in node.attribute if attribute.name == "to"}
    assert onnx.TensorProto.FLOAT in kinds
    assert onnx.TensorProto.DOUBLE not in kinds


@every_artifact
def test_every_initializer_is_read(exported: Exported, options: dict[str, str]) -> None:
    graph = load(exported(**options)).graph
    assert [name for name, value in graph.initializers.items() if not value.uses()] == []


@every_artifact
def test_a_node_is_called_like_its_first_result_and_names_are_unique(
    exported: Exported, options: dict[str, str]
) -> None:
    graph = load(exported(**options)).graph
    assert all(node.name == node.outputs[0].name for node in graph)
    names = [value.name for node in graph for value in node.outputs if value.name]
    names += [*graph.initializers, *(value.name for value in graph.inputs if value.name not in graph.initializers)]
    assert len(names) == len(set(names))


def test_values_are_called_like_the_authors_modules(exported: Exported) -> None:
    names = {value.name for node in load(exported(**LLAMA)).graph for value in node.outputs}
    projections = ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "input_layernorm"]
    for layer in ("model.layers.0", "model.layers.1", "model.layers.2"):
        assert {layer, *(f"{layer}.{name}" for name in projections)} <= names
    assert {"model.embed_tokens", "model.norm", "attention_bias"} <= names


def test_weights_that_are_kept_as_they_are_keep_their_names(exported: Exported) -> None:
    artifact = exported(**LLAMA)
    stored = stored_model(artifact.with_name("checkpoint")).state_dict()
    initializers = {name.removesuffix(".transposed") for name in load(artifact).graph.initializers}
    assert initializers - {"num_logits_to_keep", "model.rotary_emb.inv_freq"} == set(stored)


# Stamping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [LLAMA, GEMMA], ids=["llama", "gemma3"])
def test_stamped_layers_are_the_layers_traced_one_by_one(exported: Exported, options: dict[str, str]) -> None:
    stamped, traced = exported(**options), exported(**options, within=every_layer_traced)
    assert kinds_of(stamped) == kinds_of(traced)
    for got, expected in zip(step(stamped, tokens(2, 20)), step(traced, tokens(2, 20)), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("options", [LLAMA, GEMMA, {"case": "gpt2_scale_by_layer"}], ids=["llama", "gemma3", "gpt2"])
def test_every_layer_is_its_own(exported: Exported, options: dict[str, str]) -> None:
    artifact, ids = exported(**options), tokens(2, 20)
    np.testing.assert_allclose(logits(artifact, ids), reference(artifact, ids), atol=CLOSE)
