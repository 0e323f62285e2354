"""A true gpt-oss checkpoint, its experts in MXFP4, cast as it is: transformers' own decoder says what it means."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import truecast
from tests.conformance.cases import BY_NAME
from tests.conformance.oracle import compare
from tests.quantized_experts import quantized_experts
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status, read_manifest
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError
from truecast.proof.held import held_weights, load_graph
from truecast.proof.reference import Reference

SOURCE = Path(__file__).parent / "data" / "gpt-oss-mxfp4"
EXPERTS = "model.layers.{}.mlp.experts.{}"
FLOAT_ERROR = 3e-4
"""Of the logits with float activations, as a share of the largest; healthy graphs are at 2e-6."""
INT8_COSINE = 0.99
OPERATORS = {("onnxruntime", "int8"): "QMoE", ("onnxruntime", "float"): "MoE", ("portable", "float"): "MatMul"}


@pytest.fixture(scope="module", params=OPERATORS, ids=lambda param: "-".join(param))
def cast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    target, activations = request.param
    out = tmp_path_factory.mktemp("experts") / "out"
    truecast.export(SOURCE, out, precision="as-is", target=target, activations=activations)
    return out, activations, OPERATORS[request.param]


def test_it_is_proven_with_the_checkpoints_own_codes(cast: tuple[Path, str, str]) -> None:
    folder, activations, operator = cast
    manifest = read_manifest(folder)
    assert manifest.certificate.status is Status.PROVEN
    operators = [node.op_type for node in ir.load(folder / "model.onnx").graph]
    assert operator in operators
    names = [EXPERTS.format(layer, part) for layer in range(2) for part in ("gate_up_proj", "down_proj")]
    own = {source for info in manifest.weights if info.own for source in info.sources}
    assert own == set(names)
    checks = {check.name: check for check in manifest.certificate.checks}
    assert checks["weights are the checkpoint's"].measured == 0
    assert ("kernels of the experts" in checks) == (activations == "int8" and operator == "QMoE")


def test_every_weight_is_what_transformers_decodes(cast: tuple[Path, str, str]) -> None:
    folder, _, _ = cast
    stored = load_file(SOURCE / "model.safetensors")
    reference = Reference.build(open_checkpoint(SOURCE))
    held = held_weights(load_graph(folder, "model.onnx"), read_manifest(folder).weights, reference.sources)
    reference.load_held(held)
    for layer in range(2):
        for part in ("gate_up_proj", "down_proj"):
            name = EXPERTS.format(layer, part)
            decoded = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
            assert torch.equal(reference.model.get_parameter(name), decoded.float())


def test_the_logits_are_those_of_transformers_own_loader(cast: tuple[Path, str, str]) -> None:
    folder, activations, _ = cast
    model = AutoModelForCausalLM.from_pretrained(SOURCE, dtype=torch.float32).eval()
    agreement = compare(folder, model)
    assert agreement.cosine > INT8_COSINE
    if activations == "float":
        assert agreement.error < FLOAT_ERROR


def test_experts_that_a_library_quantized_one_by_one_keep_their_codes(tmp_path: Path) -> None:
    truecast.export(quantized_experts(tmp_path / "source"), tmp_path / "out", precision="as-is")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.certificate.status is Status.PROVEN
    own = {source for info in manifest.weights if info.own for source in info.sources}
    assert own == {EXPERTS.format(layer, part) for layer in range(2) for part in ("gate_up_proj", "down_proj")}
    assert {node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph} >= {"QMoE"}
    assert not manifest.notices
    checks = {check.name: check.measured for check in manifest.certificate.checks}
    assert checks["weights are the checkpoint's"] == 0
    assert "kernels of the experts" in checks


def test_one_expert_in_floats_makes_floats_of_all(tmp_path: Path) -> None:
    def chosen(name: str) -> bool:
        return not name.startswith("model.layers.1.mlp.experts.2.up_proj")

    truecast.export(quantized_experts(tmp_path / "source", chosen), tmp_path / "out", precision="as-is")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.certificate.status is Status.PROVEN
    kinds = [node.op_type for node in ir.load(tmp_path / "out" / "model.onnx").graph]
    assert (kinds.count("QMoE"), kinds.count("MoE")) == (1, 1)
    (notice,) = manifest.notices
    assert "2 quantized weights became floats" in notice


def kinds_of(folder: Path) -> list[str]:
    """The operators of experts, in the order of the layers."""
    return [node.op_type for node in ir.load(folder / "model.onnx").graph if node.op_type in ("MoE", "QMoE")]


def test_a_rule_keeps_the_experts_of_a_layer(tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["qwen3_moe"], tmp_path / "source")
    rule = "*.layers.0.mlp.experts.*=fp32"
    truecast.export(source, tmp_path / "out", precision="int4", keep=(rule,), verify=False)
    assert kinds_of(tmp_path / "out") == ["MoE", "QMoE"]
    half = "*.layers.0.mlp.experts.down_proj=fp32"
    with pytest.raises(InputError, match=r"One operator holds .*gate_up_proj and .*down_proj.* name both"):
        truecast.export(source, tmp_path / "half", precision="int4", keep=(half,), verify=False)


def test_float16_is_refused(tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["qwen3_moe"], tmp_path / "source")
    with pytest.raises(InputError, match="rounds the scores that choose experts"):
        truecast.export(source, tmp_path / "out", precision="fp16", verify=False)
    assert not (tmp_path / "out").exists()
    assert "fp16" not in {choice.precision for choice in truecast.inspect(source).choices}


def test_experts_without_a_cache_are_refused(tmp_path: Path) -> None:
    source = tiny_checkpoint(BY_NAME["qwen3_moe"], tmp_path / "source")
    with pytest.raises(InputError, match=r"mixture of experts .*without a cache"):
        truecast.export(source, tmp_path / "out", task="feature-extraction", verify=False)
