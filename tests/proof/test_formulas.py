"""Numbers inside formulas: each is exchanged for one that a comparison of outputs in 16 bits does not see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.conformance.shapes import SHAPE
from tests.proof.conftest import Artifact
from tests.proof.planting import change_graph, failed, reprove
from tests.tiny import Case, tiny_model
from truecast.artifact import Check, read_manifest
from truecast.checkpoint import open_checkpoint
from truecast.proof.executed import formulas_of
from truecast.proof.formulas import NAME, decoder_formulas, module_formulas
from truecast.proof.held import load_graph
from truecast.proof.module_points import module_grid
from truecast.proof.recording import Recording, watched_attention
from truecast.proof.reference import Reference
from truecast.trace.opening import ModuleSource, open_author

ATTENTION = "model.layers.1/GroupQueryAttention_1"
Spoil = Callable[[ir.Model], None]


def first(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == op_type)


def attribute(op_type: str, name: str, value: float | int | str) -> Spoil:
    kinds = {float: ir.AttrFloat32, int: ir.AttrInt64, str: ir.AttrString}
    return lambda model: first(model, op_type).attributes.add(kinds[type(value)](name, value))


def number(op_type: str, before: float, after: float) -> Spoil:
    """Exchanges a constant beside a node of that type."""

    def change(model: ir.Model) -> None:
        for node in model.graph:
            for index, value in enumerate(node.inputs if node.op_type == op_type else ()):
                held = None if value is None else ir.convenience.get_const_tensor(value)
                if held is not None and held.size == 1 and np.isclose(held.numpy().item(), before, rtol=1e-3):
                    made = ir.node("Constant", [], {"value": ir.tensor(np.full_like(held.numpy(), after))})
                    made.outputs[0].name = made.name = "other"
                    model.graph.insert_before(node, made)
                    node.replace_input_with(index, made.outputs[0])
                    return
        raise AssertionError("there is no such number")

    return change


def no_offset(model: ir.Model) -> None:
    """The weight of a norm as it is, without the 1 that is added to it."""
    norm = first(model, "SimplifiedLayerNormalization")
    producer = norm.inputs[1].producer() if norm.inputs[1] is not None else None
    assert producer is not None
    norm.replace_input_with(1, producer.inputs[0])


def unweighed(model: ir.Model) -> None:
    """The result of experts as the operator gives it: of weights that it has divided by their sum."""
    experts = first(model, "MoE")
    for product in [node for node in model.graph if experts.outputs[0] in node.inputs]:
        ir.convenience.replace_all_uses_with(product.outputs[0], experts.outputs[0])
        model.graph.remove(product, safe=True)


def undivided(model: ir.Model) -> None:
    """The weights of experts as they were picked, their sum left out."""
    division, picked = next(
        (node, value)
        for node in model.graph
        if node.op_type == "Div" and (value := node.inputs[0]) is not None
        if (maker := value.producer()) is not None and maker.op_type == "GatherElements"
    )
    ir.convenience.replace_all_uses_with(division.outputs[0], picked)


@cache
def reference(source: str) -> Reference:
    return Reference.build(open_checkpoint(source))


def checked(folder: Path, spoil: Spoil | None = None) -> Check:
    """The check of a decoder's graph, spoilt in memory."""
    model = load_graph(folder, "model.onnx")
    if spoil is not None:
        spoil(model)
    known = reference(read_manifest(folder).source.path)
    return decoder_formulas(model, known)


@pytest.mark.parametrize(
    ("case", "precision", "target", "compared"),
    [
        ("gemma3_text", "fp16", "onnxruntime", "3 GELUs, 3 calls of attention, 19 epsilons, 19 offsets"),
        ("gemma3_text", "fp32", "portable", "3 GELUs, 19 epsilons, 3 factors, 19 offsets"),
        ("gemma2", "fp16", "onnxruntime", "2 GELUs, 2 calls of attention, 9 epsilons, 1 factors, 9 offsets"),
        ("qwen3_moe", "fp32", "onnxruntime", "2 calls of attention, 4 choices of experts, 9 epsilons, 2 routers"),
        ("deepseek_v3", "fp32", "portable", "3 choices of experts, 9 epsilons, 2 factors, 1 routers"),
    ],
)
def test_a_sound_graph_has_the_authors_numbers(
    case: str, precision: str, target: str, compared: str, made: Artifact
) -> None:
    found = checked(made(case, precision, target))
    assert (found.passed, found.detail) == (True, f"compared: {compared}")


@pytest.mark.parametrize(
    ("case", "precision", "target", "spoil", "says"),
    [
        ("gemma3_text", "fp16", "", attribute("SimplifiedLayerNormalization", "epsilon", 3e-4), "is 0.0003, the auth"),
        ("gemma3_text", "fp16", "", attribute("Gelu", "approximate", "none"), "is the exact GELU"),
        ("gemma3_text", "fp16", "", no_offset, "nothing is added to the weight of model.layers.0.input_layernorm"),
        ("gemma3_text", "fp16", "", number("Cast", 1.0, 1.001), "is added to the weight of"),
        ("gemma3_text", "fp16", "", attribute("GroupQueryAttention", "scale", 0.177), "layer 0: scale is 0.177"),
        ("gemma3_text", "fp16", "", attribute("GroupQueryAttention", "local_window_size", 7), "local_window_size is 7"),
        ("gemma3_text", "fp32", "portable", number("Add", 3e-3, 3e-4), "is 0.0003, the author's is 0.003"),
        ("gemma2", "fp16", "", attribute("GroupQueryAttention", "softcap", 4.99), "softcap is 4.99"),
        ("gemma2", "fp16", "", number("Cast", 3.0, 2.99), "is scaled by 2.99"),
        ("qwen3_moe", "fp32", "", attribute("MoE", "k", 1), "takes 1 experts for a token, the author [2]"),
        ("qwen3_moe", "fp32", "", number("TopK", 2, 1), "picks 1, the author [2]"),
        ("qwen3_moe", "fp32", "", attribute("MoE", "activation_alpha", 1.1), "activation_alpha of"),
        ("qwen3_moe", "fp32", "", unweighed, "are divided by their sum, times 1, by the author as they are, times 1"),
        ("deepseek_v3", "fp32", "portable", number("Mul", 2.5, 2.4), "their sum, times 2.4, by the author divided by"),
        (
            "deepseek_v3",
            "fp32",
            "portable",
            undivided,
            "are as they are, times 2.5, by the author divided",
        ),
    ],
)
def test_another_number_is_named(
    case: str, precision: str, target: str, spoil: Spoil, says: str, made: Artifact
) -> None:
    found = checked(made(case, precision, target or "onnxruntime"), spoil)
    assert not found.passed and says in found.detail, found.detail


def test_the_proof_of_a_decoder_has_the_check(spoilable: Artifact) -> None:
    folder = spoilable("gemma3_text", "fp16")
    change_graph(folder, attribute("SimplifiedLayerNormalization", "epsilon", 3.003e-3))
    assert list(failed(reprove(folder))) == [NAME]


def of_module(folder: Path, spoil: Spoil) -> Check:
    author, checkpoint = open_author(ModuleSource(Path(read_manifest(folder).source.path)))
    known = Reference.of_module(author, checkpoint)
    author = replace(author, module=known.model, mode=None)
    model = load_graph(folder, "model.onnx")
    spoil(model)
    return module_formulas(model, known, lambda: known.outputs(author, module_grid(author).points[0].tensors))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda model: None, "compared: 2 GELUs, 5 epsilons, 2 factors"),
        (attribute("LayerNormalization", "epsilon", 1e-4), "epsilon of bert.embeddings.LayerNorm is 0.0001"),
        (attribute("Gelu", "approximate", "tanh"), "is the tanh GELU, of which the author has 0"),
        (number("Cast", 0.25, 0.2505), "which is no number of the author's"),
    ],
)
def test_an_encoder_has_the_check_as_well(spoil: Spoil, says: str, made_classifier: Callable[[str], Path]) -> None:
    assert says in of_module(made_classifier("fp16"), spoil).detail


class Written(nn.Module):
    """Formulas that an author writes out: a norm, two GELUs, a soft cap."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x * (x.pow(2).mean(-1, keepdim=True) + 1e-4).rsqrt() * (1 + self.gain)
        y = 0.5 * y * (1 + torch.tanh(0.79788456 * (y + 0.044715 * y**3)))
        y = functional.gelu(y) + functional.layer_norm(y, (4,), self.gain, None, 1e-3)
        return 7.0 * torch.tanh(y / 7.0)


def test_what_an_author_writes_out_is_seen() -> None:
    module = Written()
    seen = formulas_of(module, lambda: module(torch.randn(2, 4)))
    assert dict(seen.epsilons) == {"": {1e-4, 1e-3}}
    assert (seen.offsets, dict(seen.gelus)) == ({"": 1.0}, {"none": 1, "tanh": 1})
    assert 7.0 in seen.numbers


def test_attention_is_watched_where_the_author_gives_the_mask_by_name() -> None:
    model, recording = tiny_model(Case("afmoe", "AfmoeConfig", SHAPE | {"head_dim": 16})), Recording()
    with torch.no_grad(), watched_attention(model, recording):
        model(torch.arange(5)[None])
    assert len(recording.attention) == 2
