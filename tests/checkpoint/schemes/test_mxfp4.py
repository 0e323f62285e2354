"""MXFP4 experts of gpt-oss: read as transformers decodes them, any expert on its own."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.checkpoint.schemes.stored import Array, float4, refused, resolved
from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.schemes.mxfp4 import SCHEME

EXPERTS = "model.layers.0.mlp.experts"
METHOD = {"quant_method": "mxfp4"}


def parts(name: str, experts: int, rows: int, groups: int, lowest: int = 110, highest: int = 140) -> dict[str, Array]:
    generator = np.random.default_rng(rows)
    return {
        f"{name}_blocks": generator.integers(0, 256, (experts, rows, groups, 16), np.uint8),
        f"{name}_scales": generator.integers(lowest, highest, (experts, rows, groups), np.uint8),
    }


def experts(folder: Path, stored: dict[str, Array], name: str) -> StoredTensor:
    return resolved(folder, SCHEME, stored, METHOD, EXPERTS).tensors[f"{EXPERTS}.{name}"]


def by_transformers(stored: dict[str, Array], name: str) -> Array:
    blocks, scales = (torch.from_numpy(stored[f"{name}_{kind}"]) for kind in ("blocks", "scales"))
    decoded = convert_moe_packed_tensors(blocks, scales)
    assert decoded.dtype == torch.bfloat16
    values: Array = decoded.float().numpy()
    return values


@pytest.mark.parametrize(("name", "rows", "groups"), [("gate_up_proj", 12, 3), ("down_proj", 5, 1)])
def test_experts_are_what_transformers_decodes(tmp_path: Path, name: str, rows: int, groups: int) -> None:
    stored = parts(name, 4, rows, groups)
    tensor = experts(tmp_path, stored, name)
    assert tensor.shape == (4, 32 * groups, rows)
    assert tensor.dtype == tensor.read().dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(tensor.read().astype(np.float32), by_transformers(stored, name))
    np.testing.assert_array_equal(tensor.rows(1, 3), tensor.read()[1:3])
    assert tensor.rows(2, 2).shape == (0, 32 * groups, rows)


def test_the_smallest_and_largest_scales_lose_nothing(tmp_path: Path) -> None:
    stored = parts("down_proj", 1, 253, 1)
    stored["down_proj_scales"][0, :, 0] = np.arange(253)
    values = float4(stored["down_proj_blocks"].reshape(1, 253, 16)).astype(np.float64)
    wanted = np.ldexp(values, np.arange(253)[None, :, None] - 127).transpose(0, 2, 1)
    read = experts(tmp_path, stored, "down_proj").read()
    np.testing.assert_array_equal(read.astype(np.float64), wanted)


def test_both_projections_are_read_and_their_biases_stay(tmp_path: Path) -> None:
    stored = {**parts("gate_up_proj", 2, 8, 1), **parts("down_proj", 2, 6, 2)}
    stored["gate_up_proj_bias"] = np.ones((2, 8), np.float32)
    found = resolved(tmp_path, SCHEME, stored, METHOD, EXPERTS)
    assert set(found.tensors) == {f"{EXPERTS}.{name}" for name in ("gate_up_proj", "gate_up_proj_bias", "down_proj")}
    assert found.tensors[f"{EXPERTS}.down_proj"].nbytes == 2 * 6 * 2 * (16 + 1)


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    stored = parts("down_proj", 2, 6, 2)
    stored["down_proj_scales"] = stored["down_proj_scales"][:, :5]
    refused(tmp_path, SCHEME, stored, METHOD, "which are not the blocks of 32 4-bit floats and their scales")
    del stored["down_proj_scales"]
    refused(tmp_path, SCHEME, stored, METHOD, "no model.layers.0.mlp.up_proj.down_proj_scales")
