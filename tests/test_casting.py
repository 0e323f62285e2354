"""True checkpoints of every library, and GGUF files of every common type, cast as they are and proven.

The proof of tier 1 (every weight, bit for bit) covers all of them. Of tier 2 and 4 (logits and texts) the `WHOLE` ones
take the whole grid, one for each library and each kind of operator; the others take three of its points, and write a
few tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tests.checkpoint.gguf.files import Converted
from tests.checkpoint.gguf.test_encodings import random_rows
from tests.traces import traced_once
from truecast.artifact import Manifest, Status, read_manifest
from truecast.checkpoint import Checkpoint, open_checkpoint
from truecast.checkpoint.encoding import Affine
from truecast.exporting import export
from truecast.proof import running
from truecast.proof.held import HeldWeight, held_weights, load_graph
from truecast.proof.reference import Reference
from truecast.request import Request

DATA = Path(__file__).parent / "data"
FOLDERS = sorted(path.parent.name for path in DATA.glob("*/oracle.json") if path.with_name("tokenizer.json").exists())
"""Those of a whole model whose weights are matrices; the others are of single tensors, or of experts."""
WHOLE = {
    *("auto-round-awq", "auto-round-ct-nvfp4", "auto-round-fp8-blocks", "bitsandbytes-int8", "bitsandbytes-nf4-double"),
    *("compressed-tensors-integers", "gptqmodel-act-order", "gptqmodel-dynamic-head", "hqq-axis1", "quark-uint4"),
    *("torchao-intx", "Q4_K", "Q6_K"),
}
"""Proven on the whole grid."""
POINTS = {"batch 2, new 17, past 0", "left padding"}
"""What the others are compared at, beside a text."""
NEW_TOKENS = 4
OTHER_ORDER = {"bitsandbytes-int8"}
"""Whose library multiplies code, scale and 1/127 in an order that no operator does: two roundings apart."""
DECODED = {"hqq-axis0"}
"""Whose groups run down the columns: read as floats."""
VALUES = "weights are the checkpoint's"

Kind = gguf.GGMLQuantizationType
KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
BY_MEAN = {Kind.Q2_K: 1.5, Kind.Q4_K: 7.5, Kind.Q5_K: 15.5}
"""The mean code of types with minima: a minimum of as many scales makes the mean weight 0."""
GGUF = Converted(
    "llama",
    "LlamaConfig",
    {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    {"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 64, "rope.freq_base": 1e4},
    interleaved=True,
)


@dataclass(frozen=True)
class Cast:
    """A checkpoint, its proven artifact, and the weights that the artifact holds."""

    name: str
    checkpoint: Checkpoint
    folder: Path
    manifest: Manifest
    held: dict[str, HeldWeight]

    @property
    def quantized(self) -> set[str]:
        """Names of the weights that the checkpoint stores encoded."""
        return {name for name, tensor in self.checkpoint.tensors.items() if tensor.encoding is not None}

    def rows(self, name: str) -> np.ndarray:
        """A weight [out, in] as the graph reads it."""
        weight = self.held[name]
        rows = weight.rows(0, weight.shape[0]).astype(np.float32)
        return np.ascontiguousarray(rows.T if weight.transposed else rows)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models are faster on one thread of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", name="traced_once")
def one_trace() -> Iterator[None]:
    with traced_once():
        yield


def few(make: Callable[..., tuple[Sequence[Any], list[str]]]) -> Callable[..., tuple[Sequence[Any], list[str]]]:
    """A grid of a few points."""

    def grid(*args: Any) -> tuple[Sequence[Any], list[str]]:
        points, notes = make(*args)
        chosen = [point for point in points if point.text or point.name in POINTS]
        assert len(chosen) > len(POINTS)
        return chosen, notes

    return grid


@pytest.fixture(scope="module", params=[*FOLDERS, *KINDS])
def cast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, traced_once: None) -> Iterator[Cast]:
    name, folder = request.param, tmp_path_factory.mktemp("cast")
    source = DATA / name if name in FOLDERS else gguf_file(folder / "model.gguf", Kind[name])
    activations = "int8" if name in FOLDERS else "float"  # random codes have no room for rounding
    with pytest.MonkeyPatch.context() as patch:
        if name not in WHOLE:
            patch.setattr(running, "grid", few(running.grid))
            patch.setattr(running, "new_tokens", lambda *args: NEW_TOKENS)
        export(source, folder / "out", Request(precision="as-is", activations=activations))
    checkpoint, manifest = open_checkpoint(source), read_manifest(folder / "out")
    reference = Reference.build(checkpoint)
    held = held_weights(load_graph(folder / "out", "model.onnx"), manifest.weights, reference.sources)
    yield Cast(name, checkpoint, folder / "out", manifest, held)


def gguf_file(path: Path, kind: gguf.GGMLQuantizationType) -> Path:
    """A model with random blocks of one type for matrices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.quants, "quantize", random_blocks)
        GGUF.write(path, kind=kind)
    return path


def random_blocks(values: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Blocks of random codes as far apart as the rows of `values`; the package has no quantizer for most types."""
    rows, width = values.shape
    blocks = width // int(gguf.GGML_QUANT_SIZES[kind][0])
    halves = np.ones((2, rows * blocks)) / 64
    halves[1] *= BY_MEAN.get(kind, -0.5 * (2 ** int(kind.name[1]) - 1) if kind.name.endswith("_1") else 1)
    made = random_rows(kind, rows, blocks, halves.astype("<f2").reshape(-1))
    if kind is Kind.MXFP4:
        made[:, :: made.shape[1] // blocks] = 127
    wanted = float(width**-0.5 / np.std(gguf.quants.dequantize(made, kind)))
    if kind is Kind.MXFP4:
        made[:, :: made.shape[1] // blocks] += np.uint8(np.round(np.log2(wanted)) % 256)
        return made
    return random_rows(kind, rows, blocks, (halves * wanted).astype("<f2").reshape(-1))


def test_it_is_proven(cast: Cast) -> None:
    certificate = cast.manifest.certificate
    assert certificate.status is Status.PROVEN
    compared = next(check for check in certificate.checks if check.name.endswith("with these weights"))
    assert compared.passed and compared.tier == "parity"
    assert bool(cast.quantized) == (cast.name not in DECODED)


def test_every_weight_is_the_checkpoints(cast: Cast) -> None:
    """Bit for bit, but for two roundings where an offset is added, or where the library multiplies in another order."""
    values = next(check for check in cast.manifest.certificate.checks if check.name == VALUES)
    sums = any(isinstance(t.encoding, Affine) and t.encoding.offsets for t in cast.checkpoint.tensors.values())
    assert values.measured is not None
    assert values.measured <= (1 if sums or cast.name in OTHER_ORDER else 0)


def test_every_quantized_weight_keeps_its_own_codes(cast: Cast) -> None:
    own = {source for info in cast.manifest.weights if info.own for source in info.sources}
    assert own == cast.quantized
    assert all(info.own or info.packing.startswith("dense") for info in cast.manifest.weights if info.sources)


def test_the_graph_holds_what_the_library_decodes(cast: Cast) -> None:
    """The library's own numbers, as it wrote them down when it made the checkpoint (-0 and 0 are the same number)."""
    if cast.name not in FOLDERS:
        pytest.skip("decoded by the gguf package, in the tests of its types")
    oracle = json.loads((DATA / cast.name / "oracle.json").read_text())["weights"]
    for name, digest in oracle.items():
        decoded, weight = cast.checkpoint.tensors[name].read(), cast.held[name]
        assert hashlib.sha256(np.ascontiguousarray(decoded).tobytes()).hexdigest() == digest, name
        sums = weight.quantization is not None and weight.quantization.moved
        if not sums and cast.name not in OTHER_ORDER:
            np.testing.assert_array_equal(cast.rows(name), decoded, err_msg=name)


def test_the_same_checkpoint_gives_the_same_bytes(traced_once: None, tmp_path: Path) -> None:
    hashes = []
    for name in ("first", "second"):
        folder = export(DATA / "gptqmodel-act-order", tmp_path / name, Request(precision="as-is", verify=False))
        hashes.append({file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("model.onnx*")})
    assert len(hashes[0]) == 2
    assert hashes[0] == hashes[1]
