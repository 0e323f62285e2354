"""The target `portable`, end to end: standard operators only, proven, for floats and every kind of codes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest
from gguf import GGMLQuantizationType as Kind
from onnx.reference import ReferenceEvaluator

from tests.checkpoint.gguf.files import Converted
from tests.conformance.shapes import SHAPE
from tests.tiny import Case, tiny_checkpoint
from truecast.artifact import Manifest, Status, read_manifest
from truecast.errors import InputError
from truecast.exporting import export
from truecast.proof import verify
from truecast.request import Request
from truecast.request.checks import require_decoder
from truecast.runtime.cache import cache_tensors, empty_state
from truecast.runtime.decoder import Decoder
from truecast.runtime.providers import PAIRED_KEY

DATA = Path(__file__).parents[1] / "data"
SUPER_BLOCK, SUB_BLOCK = 256, 32
TIED = Case("portable", "LlamaConfig", SHAPE | {"tie_word_embeddings": True})
Q4_K_MODEL = Converted(
    "llama",
    "LlamaConfig",
    {"hidden_size": 256, "intermediate_size": 256},
    {"attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 10000.0, "rope.dimension_count": 64},
    interleaved=True,
)


def q4_k(values: np.ndarray) -> np.ndarray:
    """Blocks of Q4_K [rows, bytes]: two scales in float16, eight scales and minima in 6 bits, 256 codes."""
    w = values.reshape(*values.shape[:-1], -1, SUPER_BLOCK // SUB_BLOCK, SUB_BLOCK).astype(np.float32)
    low = np.maximum(-w.min(-1), 0)
    step = (w.max(-1) + low) / 15
    d, dmin = ((x.max(-1, keepdims=True) / 63).astype(np.float16) for x in (step, low))
    scale, minimum = (np.rint(x / s.astype(np.float32)).astype(np.uint8) for x, s in ((step, d), (low, dmin)))
    size = (d.astype(np.float32) * scale)[..., None]
    codes = np.clip(np.rint((w + (dmin.astype(np.float32) * minimum)[..., None]) / size), 0, 15).astype(np.uint8)
    first, last = slice(0, 4), slice(4, 8)
    sixes = [
        scale[..., first] | (scale[..., last] >> 4) << 6,
        minimum[..., first] | (minimum[..., last] >> 4) << 6,
        (scale[..., last] & 15) | (minimum[..., last] & 15) << 4,
    ]
    nibbles = codes[..., 0::2, :] | codes[..., 1::2, :] << 4
    parts = [d.view(np.uint8), dmin.view(np.uint8), *sixes, nibbles.reshape(*nibbles.shape[:-2], -1)]
    return np.concatenate(parts, -1).reshape(*values.shape[:-1], -1)


def gguf_file(folder: Path) -> Path:
    """A tiny Llama whose matrices are Q4_K; the gguf package reads that type but does not write it."""
    plain = gguf.quants.quantize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.quants, "quantize", lambda v, kind: q4_k(v) if kind == Kind.Q4_K else plain(v, kind))
        Q4_K_MODEL.write(folder / "model.gguf", kind=Kind.Q4_K)
    return folder / "model.gguf"


def stored(name: str) -> Callable[[Path], Path]:
    return lambda folder: DATA / name


CASES: dict[str, tuple[Callable[[Path], Path], Request]] = {
    "floats": (lambda folder: tiny_checkpoint(TIED, folder), Request(target="portable", precision="fp32")),
    "int4": (lambda folder: tiny_checkpoint(TIED, folder), Request(target="portable", precision="int4")),
    "gptq": (stored("auto-round-gptq-4bit"), Request(target="portable", precision="as-is", activations="float")),
    "gptq 2 bits": (stored("auto-round-gptq-2bit-asym"), Request(target="portable", precision="as-is", opset=25)),
    "act-order": (stored("gptqmodel-act-order"), Request(target="portable", precision="as-is")),
    "mxfp4": (stored("auto-round-ct-mxfp4"), Request(target="portable", precision="as-is")),
    "nf4": (stored("bitsandbytes-nf4"), Request(target="portable", precision="as-is")),
    "float8": (stored("auto-round-fp8-blocks"), Request(target="portable", precision="as-is")),
    "Q4_K": (gguf_file, Request(target="portable", precision="as-is")),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def artifact(case: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portable")
    (folder / "source").mkdir()
    make, asked = CASES[case]
    return export(make(folder / "source"), folder / "out", asked)


@pytest.fixture(scope="module")
def manifest(artifact: Path) -> Manifest:
    return read_manifest(artifact)


def graph_of(artifact: Path) -> onnx.ModelProto:
    return onnx.load(artifact / "model.onnx", load_external_data=False)


def test_it_is_proven_with_its_own_weights(manifest: Manifest) -> None:
    assert manifest.certificate.status is Status.PROVEN
    checks = {check.name: check for check in manifest.certificate.checks}
    assert checks["operators outside ONNX"].measured == 0
    if manifest.precision == "as-is":
        assert all(info.own for info in manifest.weights if "codes" in info.packing)


def test_every_operator_is_one_of_onnx(artifact: Path, case: str) -> None:
    graph = graph_of(artifact)
    assert {imported.domain: imported.version for imported in graph.opset_import} == {"": CASES[case][1].opset or 21}
    assert {node.domain for node in graph.graph.node} == {""}
    onnx.checker.check_model(artifact / "model.onnx")


def test_the_session_key_is_where_products_of_codes_are(artifact: Path, manifest: Manifest) -> None:
    paired = any(
        node.op_type == "DequantizeLinear" and onnx.helper.get_node_attr_value(node, "axis") == 0
        for node in graph_of(artifact).graph.node
    )
    level = "0" if manifest.settings.get("activations") == "float" else "4"
    assert manifest.graph.session_entries == ({PAIRED_KEY: level} if paired else {})
    assert any(f"{PAIRED_KEY}={level}" in notice for notice in manifest.notices) == paired


def test_onnx_s_own_evaluator_gives_the_same_logits(artifact: Path, manifest: Manifest) -> None:
    ids, mask = np.array([[5, 9, 3], [7, 1, 2]]), np.array([[1, 1, 1], [0, 1, 1]])
    decoder = Decoder.open(artifact, threads=1, exact=True)
    want = decoder.step(decoder.new_cache(2), ids, mask, keep=0)
    fed = {"input_ids": ids, "attention_mask": mask, "position_ids": np.array([[0, 1, 2], [0, 0, 1]])}
    fed |= {tensor.past: empty_state(tensor, 2, 0) for tensor in cache_tensors(manifest.graph)}
    fed |= {"num_logits_to_keep": np.array(0)}
    (got,) = ReferenceEvaluator(onnx.load(artifact / "model.onnx")).run(["logits"], fed)
    real = mask == 1
    np.testing.assert_allclose(got[real], want[real], atol=1e-4 * np.abs(want).max(), rtol=0)


def test_a_changed_code_is_found(artifact: Path, manifest: Manifest, tmp_path: Path) -> None:
    copy = shutil.copytree(artifact, tmp_path / "copy")
    tensors = graph_of(copy).graph.initializer
    name = next(info for info in manifest.weights if "q_proj" in info.initializers[0]).initializers[0]
    places = {entry.key: entry.value for t in tensors if t.name == name for entry in t.external_data}
    with (copy / "model.onnx.data").open("r+b") as file:
        file.seek(int(places["offset"]) + 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x44]))
    failed = {check.name for check in verify(copy).checks if not check.passed}
    assert {"hashes of the weights", "weights are the checkpoint's"} <= failed


def test_an_opset_that_the_target_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="does not take opset 20; choose one of 21, 22, 23, 24, 25"):
        require_decoder(Request(target="portable", precision="fp32", opset=20))
    with pytest.raises(InputError, match="leave --opset out"):
        require_decoder(Request(target="onnxruntime", precision="fp32", opset=21))
