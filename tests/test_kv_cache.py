"""Exports with a quantized cache: what is written, that it runs everywhere, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import truecast
from tests.conformance.cases import BY_NAME
from tests.targets.genai_runtime import Genai
from tests.tiny import Case, tiny_checkpoint
from truecast.artifact import read_manifest
from truecast.calibration.prose import PROSE
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError, ProofError
from truecast.proof import verify
from truecast.runtime.decoder import Decoder
from truecast.runtime.generate import GenerationOptions, generate

CASE = "gemma3_text"
PROMPTS = [[5, 9, 33, 2, 71, 8], [4, 8], [7, 7, 3, 1]]
NEW = 12
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(BY_NAME[CASE], tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def exported(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports the case without a proof, once for each choice of options."""
    folder = tmp_path_factory.mktemp("out")

    def export(kv_cache: str, target: str = "onnxruntime", precision: str = "fp32") -> Path:
        out = folder / f"{kv_cache}-{target}-{precision}"
        if not out.exists():
            truecast.export(source, out, precision=precision, target=target, kv_cache=kv_cache, verify=False)
        return out

    return export


def tokens(folder: Path, prompts: list[list[int]]) -> list[list[int | None]]:
    options = GenerationOptions(max_new_tokens=NEW, eos_token_ids=())
    steps = [step.tokens for step in generate(Decoder.open(folder), prompts, options)]
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize(("kv_cache", "dtype", "bits", "part"), [("int8", "int8", 8, 1), ("int4", "uint8", 4, 2)])
def test_the_manifest_says_what_the_cache_is(exported: Export, kv_cache: str, dtype: str, bits: int, part: int) -> None:
    floats, codes = (read_manifest(exported(kind)).graph for kind in ("float", kv_cache))
    assert floats.cache is not None and codes.cache is not None
    assert (codes.cache.dtype, codes.cache.bits, codes.cache.stands_for) == (dtype, bits, "float32")
    assert (floats.cache.dtype, floats.cache.bits, floats.cache.stands_for) == ("float32", None, None)
    for before, after in zip(floats.inputs, codes.inputs, strict=True):
        if before.name.startswith("past"):
            assert (after.dtype, after.shape) == (dtype, [*before.shape[:3], int(before.shape[3]) // part])
        else:
            assert before == after


@pytest.mark.parametrize("kv_cache", ["int8", "int4"])
@pytest.mark.parametrize("target", ["onnxruntime", "genai"])
def test_a_batch_of_unequal_prompts_gives_what_they_give_alone(exported: Export, kv_cache: str, target: str) -> None:
    folder = exported(kv_cache, target)
    assert tokens(folder, PROMPTS) == [tokens(folder, [prompt])[0] for prompt in PROMPTS]


def test_a_cache_that_grows_and_one_that_is_prefilled_in_pieces_agree(exported: Export) -> None:
    decoder = Decoder.open(exported("int8"))
    ids = np.arange(40, dtype=np.int64)[None] % 97
    whole = decoder.step(decoder.new_cache(1, 64), ids)
    small = decoder.new_cache(1, 4)
    for start in range(0, 40, 8):
        pieces = decoder.step(small, ids[:, start : start + 8])
    np.testing.assert_allclose(pieces, whole, atol=1e-4 * float(np.abs(whole).max()))


@pytest.mark.parametrize("kv_cache", ["int8", "int4"])
def test_genai_says_the_same_tokens(exported: Export, tmp_path: Path, kv_cache: str) -> None:
    folder = exported(kv_cache, "genai")
    config = json.loads((folder / "genai_config.json").read_text())["model"]
    assert config["decoder"]["head_size"] == BY_NAME[CASE].settings["head_dim"]
    assert Genai(folder).greedy(PROMPTS, NEW) == tokens(folder, PROMPTS)


def test_the_same_input_gives_the_same_bytes(source: Path, exported: Export, tmp_path: Path) -> None:
    truecast.export(source, tmp_path / "again", precision="fp32", kv_cache="int4", verify=False)
    for name in ("model.onnx", "model.onnx.data", "truecast.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported("int4") / name).read_bytes(), name


def test_linked_weights_leave_the_checkpoint_alone(source: Path, exported: Export, tmp_path: Path) -> None:
    before = (source / "model.safetensors").read_bytes()
    options = {"precision": "fp32", "kv_cache": "int8", "link_weights": True, "verify": False}
    artifact = truecast.export(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert tokens(artifact.folder, PROMPTS) == tokens(exported("int8"), PROMPTS)
    assert (source / "model.safetensors").read_bytes() == before


def test_text_of_the_users_calibrates(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(reversed(PROSE)))
    options = {"precision": "fp32", "kv_cache": "int8", "calibration": text}
    artifact = truecast.export(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert artifact.manifest.settings["cache_scales"] == "from the calibration text"
    assert artifact.manifest.certificate.status == "proven"
    again = verify(tmp_path / "out")  # without the text
    assert any("not made again" in check.detail for check in again.checks), again.checks


def test_a_text_that_says_too_little_is_noticed(source: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Aa!")
    options = {"precision": "fp32", "kv_cache": "int8", "calibration": text}
    with pytest.raises(ProofError, match="price of the int8 cache"):
        truecast.export(source, tmp_path / "out", **options)  # type: ignore[arg-type]
    checks = read_manifest(tmp_path / "out.rejected").certificate.checks
    clipped = next(check for check in checks if check.name == "clipped keys and values")
    assert not clipped.passed
    assert "more text" in clipped.detail


# A checkpoint's own scales ------------------------------------------------------------------------------------------

OWN = Case(
    "llama-kv",
    "LlamaConfig",
    {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
)


def with_scales(folder: Path, scheme: dict[str, object], **extra: np.ndarray) -> Path:
    """A checkpoint as llm-compressor leaves it when nothing but the cache is quantized."""
    tiny_checkpoint(OWN, folder)
    stored = load_file(folder / "model.safetensors")
    for layer in range(2):
        for part, size in (("k", 0.11), ("v", 0.07)):
            name = f"model.layers.{layer}.self_attn.{part}_scale"
            stored[name] = np.array([size * (layer + 1)], np.float32)
    save_file(stored | extra, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "kv_cache_scheme": scheme}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


def test_a_checkpoints_own_scales_are_used(tmp_path: Path) -> None:
    artifact = truecast.export(with_scales(tmp_path / "in", INT8), tmp_path / "out", precision="as-is", kv_cache="int8")
    manifest = artifact.manifest
    assert manifest.settings["cache_scales"] == "the checkpoint's own"
    assert not manifest.ignored_tensors
    checks = {check.name: check for check in manifest.certificate.checks}
    assert checks["scales of the cache are the checkpoint's"].passed
    assert [w.sources for w in manifest.weights if w.own and "cache" in w.packing] == [
        [f"model.layers.{layer}.self_attn.{part}_scale"] for layer in range(2) for part in "kv"
    ]


@pytest.mark.parametrize(
    ("scheme", "says"),
    [
        ({**INT8, "type": "float"}, "they are for float8 codes"),
        ({**INT8, "num_bits": 4}, "they are for 4 bits"),
        ({**INT8, "dynamic": True}, "made anew for every token"),
    ],
)
def test_scales_that_cannot_be_used_are_named(tmp_path: Path, scheme: dict[str, object], says: str) -> None:
    source = with_scales(tmp_path / "in", scheme)
    out = truecast.export(source, tmp_path / "out", precision="as-is", kv_cache="int8", verify=False)
    assert any(says in notice for notice in out.manifest.notices), out.manifest.notices
    assert out.manifest.settings["cache_scales"] == "from truecast's own text"
    assert "model.layers.0.self_attn.k_scale" in out.manifest.ignored_tensors


def test_zero_points_that_are_not_zero_are_not_dropped(tmp_path: Path) -> None:
    zero = {"model.layers.1.self_attn.k_zero_point": np.array([3], np.int8)}
    source = with_scales(tmp_path / "in", INT8, **zero)
    out = truecast.export(source, tmp_path / "out", precision="as-is", kv_cache="int8", verify=False)
    assert any("zero points" in notice for notice in out.manifest.notices)


def test_the_checkpoint_hands_its_scales_through(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(with_scales(tmp_path / "in", INT8))
    assert set(checkpoint.cache_scales) == set(checkpoint.ignored)
    np.testing.assert_allclose(checkpoint.cache_scales["model.layers.1.self_attn.k_scale"].read(), 0.22)


# Refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kv_cache": "fp8"}, "There is no kind of cache 'fp8'"),
        ({"kv_cache": "int8", "target": "portable"}, "needs a cache that GroupQueryAttention keeps"),
        ({"kv_cache": "int8", "provider": "cuda"}, "was only seen to be right on cpu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    source: Path, tmp_path: Path, options: dict[str, str], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        truecast.export(source, tmp_path / "out", precision="fp32", verify=False, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_attention_that_is_traced_is_refused(tmp_path: Path) -> None:
    odd = {**OWN.settings, "hidden_size": 48, "head_dim": 12}  # no multiple of 8
    tiny_checkpoint(Case("odd", "LlamaConfig", odd), tmp_path / "in")
    with pytest.raises(InputError, match="is kept by other operators"):
        truecast.export(tmp_path / "in", tmp_path / "out", precision="fp32", kv_cache="int4", verify=False)


def test_calibration_needs_a_tokenizer(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "in"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((source / name).read_bytes())
    with pytest.raises(InputError, match=r"^Calibration needs text, and the checkpoint has no tokenizer\.json"):
        truecast.export(bare, tmp_path / "out", precision="fp32", kv_cache="int8", verify=False)
