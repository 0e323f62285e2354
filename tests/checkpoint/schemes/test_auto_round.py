"""AutoRound: its checkpoints are read bit for bit in every packing; an unknown packing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.schemes.stored import DATA, Array, save
from tests.checkpoint.schemes.test_awq import gemm
from tests.checkpoint.schemes.test_gptq import parts
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.schemes.auto_round import override
from truecast.errors import InputError


def test_tensors_are_believed_where_extra_config_says_something_else() -> None:
    checkpoint = open_checkpoint(DATA / "auto-round-4bit-head")
    assert checkpoint.config["quantization_config"]["extra_config"]["lm_head"]["bits"] == 4
    assert checkpoint.tensors["lm_head.weight"].encoding is None
    assert checkpoint.tensors["model.layers.0.mlp.down_proj.weight"].stored_as == "AutoRound 8-bit, group 32"


def module(folder: Path, stored: dict[str, Array], **stated: Any) -> Array:
    """The weight of the module `p` in a checkpoint with these tensors and this quantization_config."""
    save(folder, stored, {"quant_method": "auto-round", **stated})
    return open_checkpoint(folder).tensors["p.weight"].read()


@pytest.mark.parametrize(
    ("packing", "less"), [("auto_round", 0), ("auto_round:gptqmodel", 0), ("auto_round:auto_gptq", 1)]
)
@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_the_packing_says_how_zero_points_are_stored(packing: str, less: int, method: str, tmp_path: Path) -> None:
    stored, weight = parts(32, 64, 32, 4, less)
    read = module(tmp_path, stored, packing_format=packing, group_size=32, sym=False, quant_method=method)
    np.testing.assert_array_equal(read, weight)


def test_the_other_convention_is_not_the_same_weight(tmp_path: Path) -> None:
    stored, weight = parts(32, 64, 32, 4, less=1)
    read = module(tmp_path, stored, packing_format="auto_round", group_size=32, sym=False)
    assert (read != weight).mean() > 0.9


@pytest.mark.parametrize("packing", ["auto_round:auto_awq", "auto_round:auto_gptq"])
def test_awq_is_known_by_its_shapes_whatever_the_label(packing: str, tmp_path: Path) -> None:
    stored, weight = gemm(32, 64, 32)
    np.testing.assert_array_equal(module(tmp_path, stored, packing_format=packing, group_size=32), weight)


def test_an_unknown_packing_is_refused(tmp_path: Path) -> None:
    stored, _ = parts(32, 64, 32, 4)
    with pytest.raises(InputError, match=r"auto_round:hpu.*auto_round:auto_gptq"):
        module(tmp_path, stored, packing_format="auto_round:hpu", group_size=32)


def test_a_rotated_model_is_refused(tmp_path: Path) -> None:
    stored, _ = parts(32, 64, 32, 4)
    with pytest.raises(InputError, match="rotation_config"):
        module(tmp_path, stored, packing_format="auto_round", rotation_config={"rotation_type": "hadamard"})


def test_extra_config_is_looked_up_by_name_then_by_pattern() -> None:
    rules = {".*proj": {"bits": 8}, "a.k_proj": {"bits": 2, "sym": None}}
    assert override(rules, "a.k_proj") == {"bits": 2}
    assert override(rules, "a.q_proj") == {"bits": 8}
    assert override(rules, "a.q_proj.more") == {}
    with pytest.raises(InputError, match="cannot be read"):
        override({"(": {}}, "a")
