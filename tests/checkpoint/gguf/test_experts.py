"""Experts of GGUF files: what the file states of them, and their own codes in an artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import truecast
from tests.checkpoint.gguf.cases import BY_NAME
from truecast.artifact import Status, read_manifest
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.gguf.names import NAMINGS
from truecast.errors import InputError
from truecast.proof.held import held_weights, load_graph
from truecast.proof.reference import Reference

Kind = gguf.GGMLQuantizationType
EXPERTS = "model.layers.{}.mlp.experts.{}"
CASES = [
    ("qwen3moe", Kind.Q4_0, "int8", "QMoE", True),
    ("qwen2moe", Kind.Q8_0, "int8", "QMoE", True),
    ("qwen3moe", Kind.Q4_1, "int8", "MoE", False),
    ("gpt-oss", Kind.Q4_0, "float", "QMoE", True),
    ("gpt-oss", Kind.MXFP4, "float", "MoE", True),
]
"""What is stored, the activations, the operator, and whether the codes stay: Q4_1 has offsets, which QMoE does not.

gpt-oss of random weights does not bear int8 activations.
"""


def decoded(path: Path, turned: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """The experts' weights as the gguf package decodes them: in each expert, the rows of gate and then those of up.

    Where `turned`, they take turns, and each expert is transposed.
    """
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    found = {}
    for layer in range(2):
        gate, up, down = (values[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        found[EXPERTS.format(layer, "gate_up_proj")] = np.concatenate([gate, up], axis=1)
        found[EXPERTS.format(layer, "down_proj")] = down
        if turned:
            both = np.stack([gate, up], axis=2).reshape(len(gate), -1, gate.shape[2])
            found[EXPERTS.format(layer, "gate_up_proj")] = both.swapaxes(1, 2)
            found[EXPERTS.format(layer, "down_proj")] = down.swapaxes(1, 2)
    return found


def held(path: Path, out: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The experts' weights that the artifact in `out`, made of `path`, holds."""
    reference = Reference.build(open_checkpoint(path))
    reference.load_held(held_weights(load_graph(out, "model.onnx"), read_manifest(out).weights, reference.sources))
    return {name: reference.model.get_parameter(name).detach().numpy() for name in decoded(path)}


@pytest.mark.parametrize(("name", "kind", "activations", "operator", "keeps"), CASES)
def test_an_export_is_proven_and_holds_the_values_of_the_file(
    name: str, kind: Kind, activations: str, operator: str, keeps: bool, tmp_path: Path
) -> None:
    source = tmp_path / "model.gguf"
    BY_NAME[name].write(source, kind=kind)
    truecast.export(source, tmp_path / "out", precision="as-is", activations=activations)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.certificate.status is Status.PROVEN
    graph = load_graph(tmp_path / "out", "model.onnx")
    assert [node.op_type for node in graph.graph if node.op_type in {"MoE", "QMoE"}] == 2 * [operator]
    own = {source for info in manifest.weights if info.own for source in info.sources}
    want, got = decoded(source, turned=name == "gpt-oss"), held(source, tmp_path / "out")
    if keeps:
        assert want.keys() <= own and not manifest.notices
    else:
        (notice,) = manifest.notices
        assert not want.keys() & own and f"{len(want)} quantized weights became floats" in notice
    for weight, values in want.items():
        np.testing.assert_array_equal(got[weight], values)


def test_gate_and_up_exchanged_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "model.gguf"
    BY_NAME["qwen3moe"].write(source, kind=Kind.Q4_0)
    naming = NAMINGS["qwen3moe"]
    gate, up = naming.leaves["ffn_gate_exps"], naming.leaves["ffn_up_exps"]
    wrong = replace(naming, leaves={**naming.leaves, "ffn_gate_exps": up, "ffn_up_exps": gate})
    monkeypatch.setattr("truecast.checkpoint.gguf.names.NAMINGS", {**NAMINGS, "qwen3moe": wrong})
    truecast.export(source, tmp_path / "out", precision="as-is", verify=False)
    want, got = decoded(source), held(source, tmp_path / "out")
    equal = {name for name, values in want.items() if np.array_equal(got[name], values)}
    assert equal == {EXPERTS.format(layer, "down_proj") for layer in range(2)}


@pytest.mark.parametrize(
    ("name", "metadata", "sentence"),
    [
        ("qwen3moe", {"expert_count": 5}, r"states 5 experts and holds 4 in blk\.0\.ffn_gate_exps\.weight"),
        ("qwen3moe", {"expert_gating_func": 2}, r"has 2 as qwen3moe\.expert_gating_func, a way to weigh experts"),
        ("olmoe", {"expert_weights_scale": 2.5}, r"has 2\.5 as olmoe\.expert_weights_scale"),
        ("qwen2moe", {"expert_group_count": 8}, r"has 8 as qwen2moe\.expert_group_count"),
        ("mixtral", {"expert_weights_norm": False}, r"has False as llama\.expert_weights_norm"),
        ("llama", {"expert_count": 4}, r"mixture of experts without the matrices blk\.0\.ffn_gate_exps\.weight"),
        ("qwen3moe", {"expert_count": 2.5}, r"has 2\.5 as qwen3moe\.expert_count"),
    ],
)
def test_a_file_that_states_other_experts_is_refused(
    name: str, metadata: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    case = BY_NAME[name]
    replace(case, metadata={**case.metadata, **metadata}).write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=sentence):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["qwen2moe", "qwen3moe", "olmoe"])
def test_whether_weights_add_up_to_one_is_taken_from_the_file(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    for says in (True, False):
        path = tmp_path / f"{says}.gguf"
        replace(case, metadata={**case.metadata, "expert_weights_norm": says}).write(path)
        assert open_checkpoint(path).config["norm_topk_prob"] is says


def test_a_file_without_one_of_the_matrices_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["gpt-oss"]
    lacking = {n: v for n, v in case.tensors(case.model()).items() if n != "blk.1.ffn_up_exps.bias"}
    monkeypatch.setattr(type(case), "tensors", lambda *_: lacking)
    case.write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"lacks tensors of model\.layers\.1\.mlp\.experts\.gate_up_proj_bias"):
        open_checkpoint(tmp_path / "model.gguf")


def test_biases_of_unlike_widths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = BY_NAME["gpt-oss"]
    name = "blk.1.ffn_up_exps.bias"
    tensors = case.tensors(case.model())
    monkeypatch.setattr(type(case), "tensors", lambda *_: tensors | {name: tensors[name][:, 1:]})
    case.write(tmp_path / "model.gguf")
    with pytest.raises(InputError, match=r"biases of .*\.1\.mlp\.experts\.gate_up_proj_bias differ in shape"):
        open_checkpoint(tmp_path / "model.gguf")
