"""Every parameter has its tensor and every tensor its place; anything else is an error that names it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.encodings import make_affine
from tests.weights.stored import FILE, encoded, random, sources, stored
from truecast.checkpoint.model import Checkpoint
from truecast.errors import InputError
from truecast.weights.sources import Sources, finite_rows


def renamed(arrays: dict[str, np.ndarray], parameters: dict[str, tuple[int, ...]]) -> Sources:
    """Sources of a checkpoint that lacks the model's prefix."""
    tensors = {name: stored(name, array) for name, array in arrays.items()}
    return Sources(Checkpoint(Path("folder"), "safetensors", {}, tensors), parameters, {}, lambda name: f"model.{name}")


def test_a_parameter_has_the_tensor_of_its_name() -> None:
    found = sources({"a": random(2, 3), "b": random(2, 3, seed=1)})
    assert np.array_equal(found["b"].read(), random(2, 3, seed=1))


def test_a_renamed_tensor_is_found_and_used_under_its_old_name() -> None:
    found = renamed({"wte": random(2, 3)}, {"model.wte": (2, 3)})
    assert found["model.wte"].name == "wte"
    assert found.unused() == {}


def test_a_missing_tensor_is_named() -> None:
    with pytest.raises(InputError, match="folder has no tensor 'b', which the model needs"):
        sources({"a": random(2, 3)})["b"]


def test_a_tensor_of_another_shape_is_named_with_both_shapes() -> None:
    found = renamed({"wte": random(2, 3)}, {"model.wte": (3, 2)})
    with pytest.raises(InputError, match=r"'wte' in .*model.safetensors has the shape \[2, 3\], .* wants \[3, 2\]"):
        found["model.wte"]


def test_a_tied_parameter_has_the_tensor_it_is_tied_to() -> None:
    found = sources({"embed": random(2, 3)}, {"head": "embed"})
    assert found["head"] is found["embed"]


def test_a_tied_tensor_may_be_stored_under_the_other_name_only() -> None:
    tensors = {"head": stored("head", random(2, 3))}
    parameters = {"embed": (2, 3), "head": (2, 3)}
    found = Sources(
        Checkpoint(Path("folder"), "safetensors", {}, tensors), parameters, {"head": "embed"}, lambda name: name
    )
    assert found["embed"].name == found["head"].name == "head"
    assert found.unused() == {}


def test_a_copy_of_a_tied_tensor_may_have_codes_of_its_own() -> None:
    codes = [make_affine(seed, 4, 32, (6, 64), zero="groups").encoding for seed in (0, 0, 1)]
    embed, same, other = (
        encoded(name, code, (6, 64)) for name, code in zip(("embed", "head", "head"), codes, strict=True)
    )
    found = sources({"embed": embed, "head": same}, {"head": "embed"})
    assert found["head"] is embed
    assert found.unused() == {"head": "tied to embed"}
    found = sources({"embed": embed, "head": other}, {"head": "embed"})
    found["head"]
    with pytest.raises(InputError, match=r"head in .* is not embed, to which"):
        found.unused()


def test_a_copy_of_a_tied_tensor_is_ignored_with_the_reason() -> None:
    found = sources({"embed": random(2, 3), "head": random(2, 3)}, {"head": "embed"})
    found["head"]
    assert found.unused() == {"head": "tied to embed"}


@pytest.mark.parametrize(
    "name",
    [
        *("model.layers.0.self_attn.rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_pos_emb.inv_freq"),
        *("h.0.attn.bias", "h.1.attn.masked_bias", "v_head.summary.weight"),
    ],
)
def test_what_old_libraries_saved_beside_the_weights_is_ignored_with_a_reason(name: str) -> None:
    assert name in sources({name: random(2)}).unused()


@pytest.mark.parametrize(
    "name", ["model.layers.9.mlp.weight", "h.0.attn.c_attn.bias", "inv_freq_projection", "model.inv_freq"]
)
def test_a_tensor_without_a_place_is_named(name: str) -> None:
    with pytest.raises(InputError, match=rf"no place for 1 tensor\(s\) of folder: {name};"):
        sources({name: random(2)}).unused()


def test_many_tensors_without_a_place_are_counted() -> None:
    with pytest.raises(InputError, match=r"no place for 8 tensor\(s\).*: w0, w1, w2, w3, w4 and 3 more;"):
        sources({f"w{i}": random(2) for i in range(8)}).unused()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 2)])
def test_the_first_row_that_is_not_finite_is_named(bad: float, shape: tuple[int, ...]) -> None:
    array = random(*shape)
    array.reshape(6, -1)[4:, -1] = bad
    with pytest.raises(InputError, match=rf"'w' in {FILE} holds NaN or infinity \(row 4\)"):
        finite_rows(stored("w", array), 2, 6)


def test_rows_before_the_damage_can_be_read() -> None:
    array = random(6, 4)
    array[4, 1] = np.nan
    assert np.array_equal(finite_rows(stored("w", array), 0, 4), array[:4])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_float_is_read_as_float32(dtype: str) -> None:
    rows = finite_rows(stored("w", random(3, 2).astype(dtype)), 0, 3)
    assert rows.dtype == np.float32
