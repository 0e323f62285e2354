"""Quantized checkpoints that are damaged, or contradict themselves: refused in a sentence, or handled; never wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoint.gguf.cases import BY_NAME
from truecast.artifact import read_manifest
from truecast.checkpoint import open_checkpoint
from truecast.errors import InputError
from truecast.exporting import export
from truecast.request import Request

DATA = Path(__file__).parent / "data"
AS_IS = Request(precision="as-is", verify=False)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def copied(name: str, folder: Path, **changes: object) -> Path:
    """A copy of a true checkpoint with changes in its configuration."""
    copy = Path(shutil.copytree(DATA / name, folder / name))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def test_a_quantized_head_beside_a_float_embedding_is_used(tmp_path: Path) -> None:
    folder = export(DATA / "gptqmodel-dynamic-head", tmp_path / "out", AS_IS)
    packings = {source: info.packing for info in read_manifest(folder).weights for source in info.sources}
    assert "its own codes" in packings[HEAD]
    assert packings[EMBEDDING].startswith("dense")


@pytest.mark.parametrize("name", ["gptqmodel-dynamic-head", "auto-round-4bit-head"])
def test_a_head_of_its_own_that_the_configuration_ties_away_is_refused(name: str, tmp_path: Path) -> None:
    copy = copied(name, tmp_path, tie_word_embeddings=True)
    with pytest.raises(InputError, match=rf"{HEAD} in .* is not {EMBEDDING}, to which config.json ties it"):
        export(copy, tmp_path / "out", AS_IS)
    assert not (tmp_path / "out").exists()


def test_a_copy_of_a_tied_weight_is_left_out(tmp_path: Path) -> None:
    copy = copied("auto-round-4bit-head", tmp_path, tie_word_embeddings=True)
    tensors = load_file(copy / "model.safetensors")
    save_file(tensors | {HEAD: tensors[EMBEDDING]}, copy / "model.safetensors", {"format": "pt"})
    manifest = read_manifest(export(copy, tmp_path / "out", AS_IS))
    assert manifest.ignored_tensors == {HEAD: f"tied to {EMBEDDING}"}


@pytest.mark.parametrize("missing", [1, 1000, 100_000])
def test_a_truncated_file_of_tensors_is_refused(missing: int, tmp_path: Path) -> None:
    copy = copied("gptqmodel-act-order", tmp_path)
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(InputError, match=str(path)):
        export(copy, tmp_path / "out", AS_IS)
    assert not (tmp_path / "out").exists()


def test_a_truncated_gguf_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    BY_NAME["llama"].write(path, kind=gguf.GGMLQuantizationType.Q4_0)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=str(path)):
        open_checkpoint(path)


def test_a_tensor_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    copy = copied("auto-round-awq", tmp_path)
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.qweight"
    tensors[name] = np.ascontiguousarray(tensors[name][:-8])
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj"):
        export(copy, tmp_path / "out", AS_IS)


@pytest.mark.parametrize("method", ["some-library-of-tomorrow", "", 3])
def test_a_method_that_nobody_knows_is_refused_where_no_scheme_knows_the_tensors(
    method: object, tmp_path: Path
) -> None:
    copy = copied("bitsandbytes-nf4", tmp_path, quantization_config={"quant_method": method})
    tensors = load_file(copy / "model.safetensors")
    renamed = {
        name.replace(".quant_state", ".other_state").replace(".absmax", ".amax"): t for name, t in tensors.items()
    }
    save_file({name: t for name, t in renamed.items() if "quant_map" not in name}, copy / "model.safetensors")
    with pytest.raises(InputError, match=str(copy)):
        export(copy, tmp_path / "out", AS_IS)


def test_the_tensors_are_believed_where_the_method_is_unknown(tmp_path: Path) -> None:
    copy = copied("auto-round-ct-int4", tmp_path, quantization_config={"quant_method": "some-library-of-tomorrow"})
    try:
        tensors = open_checkpoint(copy).tensors
    except InputError as error:
        assert "some-library-of-tomorrow" in str(error) or str(copy) in str(error)
    else:
        want = open_checkpoint(DATA / "auto-round-ct-int4").tensors
        name = "model.layers.0.mlp.up_proj.weight"
        np.testing.assert_array_equal(tensors[name].read(), want[name].read())


def test_scales_that_are_no_numbers_are_refused_while_the_weights_are_written(tmp_path: Path) -> None:
    copy = copied("gptqmodel-act-order", tmp_path)
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.scales"][0, 5] = np.nan
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=rf"'{name}.weight' in .* has scales that are NaN or infinity"):
        export(copy, tmp_path / "out", AS_IS)
    assert not list(tmp_path.glob("out*"))
