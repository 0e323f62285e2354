"""Errors planted into a quantized cache: each must be caught, by the check that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx_ir as ir
import pytest

import truecast
from tests.conformance.cases import BY_NAME
from tests.proof.planting import change_data, change_graph, failed, reprove
from tests.tiny import tiny_checkpoint
from truecast.artifact import Status, read_manifest, write_manifest
from truecast.proof import cache

SCALES = "scales of the cache against the author's keys and values"
ROUNDED = "cache holds the rounded keys and values"
READS = "attention reads what the codes stand for"
FLOATS = "float cache against the original"
Spoil = Callable[[Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("cache")
    source = tiny_checkpoint(BY_NAME["gemma3_text"], folder / "source")

    def make(kv_cache: str, target: str = "onnxruntime") -> Path:
        out = folder / f"{kv_cache}-{target}"
        if not out.exists():
            truecast.export(source, out, precision="fp32", kv_cache=kv_cache, target=target, verify=False)
        return out

    return make


def attention(model: ir.Model, layer: int) -> ir.Node:
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    return next(n for n in nodes if n.inputs[3] is not None and n.inputs[3].name == f"past_key_values.{layer}.key")


def in_graph(change: Callable[[ir.Model], None]) -> Spoil:
    return lambda folder: change_graph(folder, change)


def scaled(name: str, factor: float, channel: int | None = None) -> Spoil:
    def change(data: np.ndarray) -> None:
        scale = data.view(np.float32)
        chosen = slice(None) if channel is None else slice(channel, channel + 1)
        scale[chosen] = scale[chosen] * np.float32(factor)

    return lambda folder: change_data(folder, name, change)


def exchanged(first: tuple[int, int], second: tuple[int, int]) -> Spoil:
    """Two scale inputs, each given as (layer, index), exchanged."""

    def change(model: ir.Model) -> None:
        (a, i), (b, j) = ((attention(model, layer), index) for layer, index in (first, second))
        left, right = a.inputs[i], b.inputs[j]
        a.replace_input_with(i, right)
        b.replace_input_with(j, left)

    return in_graph(change)


def window_dropped(model: ir.Model) -> None:
    attention(model, 0).attributes.add(ir.AttrInt64("local_window_size", -1))


def softer(model: ir.Model) -> None:
    attention(model, 1).attributes.add(ir.AttrFloat32("scale", 0.21))


def without_scales(model: ir.Model) -> None:
    node = attention(model, 1)
    for index in (12, 13):
        node.replace_input_with(index, None)


def per_tensor(model: ir.Model) -> None:
    for part in "kv":
        attention(model, 1).attributes.add(ir.AttrString(f"{part}_quant_type", "PER_TENSOR"))


def claims_bits(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.graph.cache is not None
    cache = manifest.graph.cache.model_copy(update={"bits": 4})
    write_manifest(folder, manifest.model_copy(update={"graph": manifest.graph.model_copy(update={"cache": cache})}))


@dataclass(frozen=True)
class Plant:
    name: str
    kv_cache: str
    spoil: Spoil
    fails: str
    says: str = ""


PLANTS = [
    Plant("a scale doubled", "int8", scaled("cache.1.key_scale", 2.0), SCALES, "past_key_values.1.key"),
    Plant("a scale doubled", "int4", scaled("cache.1.key_scale", 2.0), SCALES, "past_key_values.1.key"),
    Plant("a scale halved", "int8", scaled("cache.2.value_scale", 0.5), SCALES, "past_key_values.2.value"),
    Plant("one channel's scale doubled", "int8", scaled("cache.0.value_scale", 2.0, 5), SCALES),
    Plant("key and value scales swapped", "int8", exchanged((1, 12), (1, 13)), SCALES, "past_key_values.1"),
    Plant("another layer's scale", "int8", exchanged((0, 12), (2, 12)), SCALES),
    Plant("another layer's scale", "int4", exchanged((0, 13), (1, 13)), SCALES),
    Plant("a scale that is NaN", "int8", scaled("cache.0.key_scale", np.nan), SCALES),
    Plant("a scale that is nothing", "int8", scaled("cache.0.key_scale", 0.0), SCALES),
    Plant("a dropped window", "int8", in_graph(window_dropped), FLOATS),
    Plant("a wrong scale of attention", "int4", in_graph(softer), FLOATS),
    Plant("an operator without scales", "int8", in_graph(without_scales), "as shipped runs"),
    Plant("an operator without scales", "int8", in_graph(without_scales), "scales of the cache"),
    Plant("one scale for all channels", "int8", in_graph(per_tensor), ROUNDED),
    Plant("a manifest that claims other bits", "int8", claims_bits, "float cache runs"),
]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.name}, {plant.kv_cache}")
def test_a_planted_error_is_caught(plant: Plant, made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(copytree(made(plant.kv_cache), tmp_path / "artifact"))
    plant.spoil(folder)
    certificate = reprove(folder)
    assert certificate.status is Status.FAILED
    assert plant.fails in failed(certificate), {n: c.detail for n, c in failed(certificate).items()}
    assert plant.says in failed(certificate)[plant.fails].detail


@pytest.mark.parametrize("target", ["onnxruntime", "genai"])
@pytest.mark.parametrize("kv_cache", ["int8", "int4"])
def test_a_sound_cache_is_proven(kv_cache: str, target: str, made: Callable[[str, str], Path]) -> None:
    certificate = reprove(made(kv_cache, target))
    assert not failed(certificate), failed(certificate)
    names = {check.name: check for check in certificate.checks}
    assert {SCALES, ROUNDED, READS, FLOATS, f"price of the {kv_cache} cache, mean KL"} <= set(names)


def test_a_kernel_that_reads_the_cache_wrongly_is_caught(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = cache.attend
    monkeypatch.setattr(cache, "attend", lambda *args: right(*args) * 1.001)
    assert set(failed(reprove(made("int8")))) == {READS}


def test_bisection_finds_an_error_behind_a_quantized_cache(made: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(copytree(made("int4"), tmp_path / "artifact"))
    change_graph(folder, softer)
    assert "scale is 0.21" in reprove(folder).notes[0]
