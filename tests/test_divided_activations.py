"""AWQ's divided activations, against the library's formula run in torch on the decoded weights.

`Divided` is that formula (AutoAWQ 0.2.9's and GPTQModel 7.7.0's ScaledActivation), and `packed` writes AWQ's gemm
layout from its description; nothing here is the package's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import truecast
from tests.conformance.cases import BY_NAME
from tests.conformance.encoders import BY_NAME as ENCODERS
from tests.conformance.oracle import compare
from tests.proof.planting import change_graph, failed, reprove
from tests.tiny import tiny_checkpoint, tiny_model, write_tokenizer
from truecast.artifact import Status, read_manifest
from truecast.calibration.floats import float_folder
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.model import FileRange, StoredTensor
from truecast.errors import InputError
from truecast.trace.divided import DividedActivation, is_activation
from truecast.trace.skeleton import build_decoder, checkpoint_renamer, fake_tensors

GROUP = 16
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CLOSE = 2e-5
"""Of the largest logit: float32's rounding over two layers, as the conformance matrix allows exact products."""
FAR = 1e-2
"""Of the largest logit: what a wrong division changes at least."""
ACTIVATIONS = {
    "gpt_neox": "gpt_neox.layers.{}.mlp.act",
    "gptj": "transformer.h.{}.mlp.act",
    "falcon": "transformer.h.{}.mlp.act",
    "bloom": "transformer.h.{}.mlp.gelu_impl",
    "mpt": "transformer.blocks.{}.ffn.act",
    "gpt_bigcode": "transformer.h.{}.mlp.act",
    "starcoder2": "model.layers.{}.mlp.act",
}
"""Where the models that AutoAWQ divides have their activation."""


class Divided(nn.Module):
    """The library's own module: what comes out of an activation, divided by channel."""

    def __init__(self, act: nn.Module, scales: Tensor) -> None:
        super().__init__()
        self.act, self.scales = act, nn.Parameter(scales)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) / self.scales.view(1, 1, -1)


def packed(codes: Tensor) -> Tensor:
    """Codes [n, 8 · words] as int32 [n, words]: of eight neighbours, nibble i holds column ORDER[i]."""
    columns = codes.reshape(len(codes), -1, 8)[:, :, list(ORDER)].to(torch.int64)
    words = (columns << (4 * torch.arange(8))).sum(2)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def quantized(linear: nn.Linear) -> dict[str, Tensor]:
    """AWQ's gemm tensors of a product, rounded to nearest; the product keeps what they decode to."""
    rows, width = linear.weight.shape
    groups = linear.weight.data.reshape(rows, width // GROUP, GROUP)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    scales = ((high - low) / 15).half()
    zeros = (-low / scales.float()).round().clamp(0, 15)
    codes = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    linear.weight.data = ((codes - zeros[..., None]) * scales.float()[..., None]).reshape(rows, width)
    return {
        "qweight": packed(codes.reshape(rows, width).T),
        "qzeros": packed(zeros.T),
        "scales": scales.T.contiguous(),
    }


def checkpoint(name: str, folder: Path, dtype: torch.dtype = torch.float16) -> tuple[Path, PreTrainedModel]:
    """A checkpoint as AutoAWQ saves it, activations divided, and the model that its own library makes of it."""
    model = tiny_model(BY_NAME[name], **({"intermediate_size": 128} if name == "gpt_neox" else {}))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    tensors = load_file(folder / "model.safetensors")
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and any(part.isdigit() for part in path.split(".")):
            del tensors[f"{path}.weight"]
            tensors |= {f"{path}.{part}": tensor for part, tensor in quantized(module).items()}
    generator = torch.Generator().manual_seed(7)
    for layer in range(2):
        path = ACTIVATIONS[name].format(layer)
        width = width_of(model, path)
        scales = (0.4 + 2 * torch.rand(width, generator=generator)).to(dtype)
        tensors[f"{path}.scales"] = scales
        model.set_submodule(path, Divided(model.get_submodule(path), scales.float()))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


def width_of(model: PreTrainedModel, path: str) -> int:
    """Channels of what an activation gives."""
    seen: list[int] = []
    hook = model.get_submodule(path).register_forward_hook(lambda module, args, y: seen.append(y.shape[-1]))
    model(torch.zeros(1, 2, dtype=torch.long))
    hook.remove()
    return seen[0]


def cast(source: Path, out: Path, **options: Any) -> Path:
    floats = {} if options.get("precision", "as-is") in ("fp32", "fp16") else {"activations": "float"}
    truecast.export(source, out, **{"precision": "as-is", **floats, **options})
    return out


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_tensors_say_which_activation_is_divided(name: str) -> None:
    places = [ACTIVATIONS[name].format(layer) for layer in range(2)]
    old = {f"{place.removeprefix('transformer.')}.scales": place for place in places}  # as their first files had it
    scales = {stored: StoredTensor(stored, (8,), *UNREAD) for stored in old}
    with fake_tensors():
        model = build_decoder(BY_NAME[name].config(), torch.float32, scales=scales)
    divisions = {place for place, module in model.named_modules() if isinstance(module, DividedActivation)}
    assert divisions == set(places)
    assert {checkpoint_renamer(model)(stored) for stored in old} == {f"{place}.scales" for place in places}


UNREAD: Any = (np.dtype(np.float16), "F16", FileRange(Path("model.safetensors"), 0, 16), lambda start, stop: np.ones(8))


@pytest.mark.parametrize("name", ["bloom", "gptj"])
def test_a_decoder_computes_what_its_library_computes(name: str, tmp_path: Path) -> None:
    source, model = checkpoint(name, tmp_path / "source")
    folder = cast(source, tmp_path / "out", verify=False)
    assert compare(folder, model).error <= CLOSE
    held = {source for info in read_manifest(folder).weights for source in info.sources}
    assert {f"{ACTIVATIONS[name].format(layer)}.scales" for layer in range(2)} <= held


def test_it_is_proven_and_its_layers_are_traced_once(tmp_path: Path) -> None:
    source, model = checkpoint("gpt_neox", tmp_path / "source")
    folder = cast(source, tmp_path / "out")
    manifest = read_manifest(folder)
    assert manifest.certificate.status is Status.PROVEN
    assert "layers" not in manifest.graph.traced
    assert compare(folder, model).error <= CLOSE
    for spoil in (multiplied, dropped):
        untouched = (folder / "model.onnx").read_bytes()
        change_graph(folder, spoil)
        assert any("exact products" in name for name in failed(reprove(folder)))
        (folder / "model.onnx").write_bytes(untouched)


def multiplied(model: ir.Model) -> None:
    for node in division(model):
        node.op_type = "Mul"


def dropped(model: ir.Model) -> None:
    for node in division(model):
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
        model.graph.remove(node, safe=True)


def division(model: ir.Model) -> list[ir.Node]:
    """The first layer's division."""
    found = [n for n in model.graph if n.op_type == "Div" and (n.inputs[1].name or "").endswith("0.mlp.act.scales")]
    assert len(found) == 1
    return found


@pytest.mark.parametrize("wrong", [lambda self, x: self.act(x) * self.scales, lambda self, x: self.act(x)])
def test_a_wrong_formula_is_seen_although_trace_and_proof_share_it(
    wrong: Callable[[Any, Tensor], Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = checkpoint("gpt_neox", tmp_path / "source")
    monkeypatch.setattr(DividedActivation, "forward", wrong)
    try:
        folder = cast(source, tmp_path / "out", verify=False)
    except InputError as error:
        assert "scales" in str(error)  # nothing reads them
        return
    assert compare(folder, model).error > FAR


def test_floats_are_divided_as_well_in_the_dtype_of_the_graph(tmp_path: Path) -> None:
    """AutoAWQ saves floats, too, for others to quantize (`export_compatible`)."""
    source = with_scales(tmp_path / "source", {"gpt_neox.layers.1.mlp.act.scales": torch.full((112,), 0.5)})
    plain = compare(cast(source, tmp_path / "fp32", precision="fp32", verify=False), divided(0.5))
    half = compare(cast(source, tmp_path / "fp16", precision="fp16", verify=False), divided(0.5))
    assert plain.error <= CLOSE
    assert half.cosine > 0.9999


def with_scales(folder: Path, scales: Mapping[str, Tensor]) -> Path:
    """A float checkpoint of gpt_neox, 112 channels between its products, with these tensors beside."""
    file = tiny_checkpoint(BY_NAME["gpt_neox"], folder) / "model.safetensors"
    save_file({**load_file(file), **scales}, file, {"format": "pt"})
    return folder


def divided(by: float) -> PreTrainedModel:
    model = tiny_model(BY_NAME["gpt_neox"])
    place = "gpt_neox.layers.1.mlp.act"
    model.set_submodule(place, Divided(model.get_submodule(place), torch.full((112,), by)))
    return model


ACT = "gpt_neox.layers.0.mlp.act.scales"
ZERO, TINY = torch.ones(112), torch.full((112,), 1e-9)
ZERO[5] = 0
REFUSED: dict[str, tuple[str, Tensor, str, str]] = {
    "too short": (ACT, torch.ones(64), "fp32", "holds 64 numbers, but the activation that they divide has 112"),
    "one for all": (ACT, torch.ones(1), "fp32", "holds 1 numbers, but the activation that they divide has 112"),
    "zero": (ACT, ZERO, "fp32", "is not one row of finite numbers other than zero in float32"),
    "NaN": (ACT, torch.full((112,), torch.nan), "fp32", "is not one row of finite numbers"),
    "infinity": (ACT, torch.full((112,), torch.inf), "fp32", "is not one row of finite numbers"),
    "zero in half precision": (ACT, TINY, "fp16", "other than zero in float16"),
    "a matrix": (ACT, torch.ones(1, 112), "fp32", r"\[1, 112\]\) divides an activation, and is not one row"),
    "of a product": (ACT.replace("act", "dense_h_to_4h"), torch.ones(112), "fp32", "Linear gives, which is no activ"),
    "of a norm": ("gpt_neox.final_layer_norm.scales", torch.ones(64), "fp32", "LayerNorm gives, which is no activ"),
    "of a dropout": ("gpt_neox.emb_dropout.scales", torch.ones(64), "fp32", "Dropout gives, which is no activation"),
    "of nothing": (ACT.replace("mlp", "ffn"), torch.ones(112), "fp32", "no place for 1 tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_divides_nothing_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    name, scales, precision, sentence = REFUSED[case]
    source = with_scales(tmp_path / "source", {name: scales})
    with pytest.raises(InputError, match=sentence) as caught:
        cast(source, tmp_path / "out", precision=precision, verify=False)
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_libraries_that_would_leave_divisions_out_get_no_such_checkpoint(tmp_path: Path) -> None:
    source = with_scales(tmp_path / "source", {ACT: torch.ones(112)})
    with pytest.raises(InputError, match="divides an activation, which libraries that calibrate do not know of"):
        float_folder(open_checkpoint(source), tmp_path / "floats")


class Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


@pytest.mark.parametrize("module", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Hardtanh(), nn.Tanh()])
def test_activations_are_known_by_what_they_do(module: nn.Module) -> None:
    assert is_activation(module)


OTHERS = [nn.Identity(), nn.PReLU(), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8), Softmax(), nn.GLU()]


@pytest.mark.parametrize("module", OTHERS)
def test_other_modules_are_no_activations(module: nn.Module) -> None:
    assert not is_activation(module)


def test_an_encoders_activation_is_divided(tmp_path: Path) -> None:
    case, place = ENCODERS["bert"], "encoder.layer.1.intermediate.intermediate_act_fn"
    file = tiny_checkpoint(case, tmp_path / "source") / "model.safetensors"
    scales = torch.linspace(0.5, 2, case.settings["intermediate_size"])
    save_file({**load_file(file), f"{place}.scales": scales}, file, {"format": "pt"})
    truecast.export(tmp_path / "source", tmp_path / "out", precision="fp32")
    model = tiny_model(case)
    model.set_submodule(place, Divided(model.get_submodule(place), scales))
    ids = torch.arange(12).reshape(2, 6)
    feeds = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(["last_hidden_state"], {name: tensor.numpy() for name, tensor in feeds.items()})
    with torch.no_grad():
        wanted = model(**feeds).last_hidden_state.numpy()
    assert np.abs(got - wanted).max() <= CLOSE * np.abs(wanted).max()
