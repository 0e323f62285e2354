"""Steps of a decoder: the same numbers whatever the cache, its capacity, and the way a text is cut into steps."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import OpenDecoder
from tests.runtime.graphs import CONTEXT, LAYERS, VOCAB, write_artifact
from truecast.errors import InputError
from truecast.runtime.cache import SharedCache, cache_tensors
from truecast.runtime.decoder import Decoder, positions

CLOSE = 2e-5
"""Absolute; logits are of the order of 5, in float32."""


def tokens(rows: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, (rows, length))


def in_steps(decoder: Decoder, ids: np.ndarray, cuts: list[int], capacity: int | None = None) -> np.ndarray:
    """All logits, with the text given in runs that end at `cuts`."""
    cache = decoder.new_cache(len(ids), capacity)
    runs = zip([0, *cuts], [*cuts, ids.shape[1]], strict=True)
    return np.concatenate([decoder.step(cache, ids[:, start:end], keep=0) for start, end in runs], axis=1)


@pytest.mark.parametrize("padding", ["any", "right"])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("cuts", [[3, 4, 9], [1], list(range(1, 12))])
def test_a_text_in_runs_gives_the_logits_of_the_text_at_once(
    open_decoder: OpenDecoder, padding: str, in_place: bool, cuts: list[int]
) -> None:
    decoder, ids = open_decoder(padding, in_place), tokens(1, 12)
    np.testing.assert_allclose(in_steps(decoder, ids, cuts), in_steps(decoder, ids, []), atol=CLOSE)


def test_in_place_and_concatenating_agree(open_decoder: OpenDecoder) -> None:
    ids, cuts = tokens(3, 9), list(range(4, 9))
    shared, concatenated = (in_steps(open_decoder("any", in_place), ids, cuts) for in_place in (True, False))
    np.testing.assert_allclose(shared, concatenated, atol=CLOSE)


def test_both_contracts_agree_where_nothing_is_padded(open_decoder: OpenDecoder) -> None:
    ids = tokens(2, 7)
    np.testing.assert_allclose(*(in_steps(open_decoder(name), ids, [5, 6]) for name in ("any", "right")), atol=CLOSE)


def test_a_cache_that_grows_gives_the_same_logits(open_decoder: OpenDecoder) -> None:
    ids, cuts = tokens(2, 40), list(range(2, 40))
    grown, roomy = (in_steps(open_decoder(), ids, cuts, capacity) for capacity in (2, 64))
    np.testing.assert_array_equal(grown, roomy)


def test_capacity_doubles_up_to_the_context(open_decoder: OpenDecoder) -> None:
    decoder = open_decoder()
    cache = decoder.new_cache(1, 3)
    assert isinstance(cache, SharedCache)
    seen = []
    for _ in range(CONTEXT):
        decoder.step(cache, tokens(1, 1))
        seen.append(cache.capacity)
    assert sorted(set(seen)) == [3, 6, 12, 24, 48, 96, 192, CONTEXT]


@pytest.mark.parametrize("in_place", [True, False])
def test_the_context_cannot_be_passed(open_decoder: OpenDecoder, in_place: bool) -> None:
    decoder = open_decoder("any", in_place)
    cache = decoder.new_cache(1)
    decoder.step(cache, tokens(1, CONTEXT))
    with pytest.raises(InputError, match=f"{CONTEXT + 1} tokens, more than the model's context of {CONTEXT}"):
        decoder.step(cache, tokens(1, 1))


def test_logits_outlive_the_steps_after_them(open_decoder: OpenDecoder) -> None:
    decoder, ids = open_decoder(), tokens(1, 30)
    cache = decoder.new_cache(1)
    kept = [decoder.step(cache, ids[:, at : at + 1]) for at in range(30)]
    copies = in_steps(decoder, ids, list(range(1, 30)))
    np.testing.assert_array_equal(np.concatenate(kept, axis=1), copies)


@pytest.mark.parametrize("padding", ["any", "right"])
def test_keep_chooses_between_the_last_and_every_position(open_decoder: OpenDecoder, padding: str) -> None:
    decoder, ids = open_decoder(padding), tokens(1, 6)
    last, every = (decoder.step(decoder.new_cache(1), ids, keep=keep) for keep in (1, 0))
    assert (last.shape, every.shape) == ((1, 1, VOCAB), (1, 6, VOCAB))
    np.testing.assert_allclose(last[:, 0], every[:, -1], atol=CLOSE)


def test_keep_does_not_outlast_its_step(open_decoder: OpenDecoder) -> None:
    decoder = open_decoder()
    cache = decoder.new_cache(1)
    lengths = [decoder.step(cache, tokens(1, 4), keep=keep).shape[1] for keep in (0, 1, 0)]
    assert lengths == [4, 1, 4]


@pytest.mark.parametrize(
    "mask",
    [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 0, 0, 1, 1, 1], [0, 1, 0, 1, 1, 0]],
    ids=["left", "right", "hole", "mixed"],
)
def test_any_mask_gives_the_logits_of_the_unpadded_text(open_decoder: OpenDecoder, mask: list[int]) -> None:
    decoder, ids, real = open_decoder("any"), tokens(1, 6), np.array(mask) == 1
    padded = decoder.step(decoder.new_cache(1), ids, np.array([mask]), keep=0)[:, real]
    plain = decoder.step(decoder.new_cache(1), ids[:, real], keep=0)
    np.testing.assert_allclose(padded, plain, atol=CLOSE)


def test_the_last_real_token_of_every_row_gives_the_logits_of_contract_right(open_decoder: OpenDecoder) -> None:
    decoder, ids = open_decoder("right"), tokens(1, 6)
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    rows = decoder.step(decoder.new_cache(2), np.repeat(ids, 2, axis=0), mask)
    every = decoder.step(decoder.new_cache(1), ids, keep=0)
    np.testing.assert_allclose(rows[:, 0], every[0, [5, 1]], atol=CLOSE)


def test_given_positions_are_used(open_decoder: OpenDecoder) -> None:
    decoder, ids = open_decoder("any"), tokens(1, 5)
    by_default, shifted, spread = (
        decoder.step(decoder.new_cache(1), ids, keep=0, position_ids=ids_of)
        for ids_of in (None, np.arange(5)[None] + 30, np.arange(5)[None] * 9)
    )
    np.testing.assert_allclose(by_default, shifted, atol=CLOSE)  # rotary is relative
    assert np.abs(by_default - spread).max() > 100 * CLOSE


def test_positions_count_the_ones_before() -> None:
    mask = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0]])
    np.testing.assert_array_equal(positions(mask, 5), [[0, 0, 0, 1, 2], [0, 0, 1, 2, 2]])
    np.testing.assert_array_equal(positions(mask, 2), [[1, 2], [2, 2]])


@pytest.mark.parametrize(("ids", "mask"), [((2, 3), None), ((1, 3), (1, 4)), ((1, 3), (2, 3))])
def test_shapes_that_do_not_fit_are_refused(
    open_decoder: OpenDecoder, ids: tuple[int, int], mask: tuple[int, int] | None
) -> None:
    decoder = open_decoder()
    with pytest.raises(ValueError, match="do not fit a cache of 1 rows holding 0 positions"):
        decoder.step(decoder.new_cache(1), np.zeros(ids, np.int64), None if mask is None else np.ones(mask, np.int64))


def test_a_row_cannot_come_from_another_kind_of_cache(open_decoder: OpenDecoder) -> None:
    shared = open_decoder("any", True).new_cache(2)
    assert isinstance(shared, SharedCache)
    with pytest.raises(TypeError, match="same kind"):
        shared.copy_row(0, open_decoder("any", False).new_cache(1))


def edit_manifest(folder: Path, **graph: object) -> Path:
    content = json.loads((folder / "truecast.json").read_text())
    content["graph"].update(graph)
    (folder / "truecast.json").write_text(json.dumps(content))
    return folder


def test_an_artifact_without_a_cache_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no decoder"):
        Decoder.open(edit_manifest(write_artifact(tmp_path), cache=None))


def test_other_providers_are_refused_until_their_cache_can_live_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Decoding on cuda is not possible yet"):
        Decoder.open(write_artifact(tmp_path), "cuda")


def test_a_past_without_a_present_is_named(open_decoder: OpenDecoder) -> None:
    info = open_decoder().info
    outputs = [tensor for tensor in info.outputs if tensor.name != "present.1.value"]
    assert len(cache_tensors(info)) == 2 * LAYERS
    with pytest.raises(InputError, match=r"past_key_values\.1\.value but no output present\.1\.value"):
        cache_tensors(info.model_copy(update={"outputs": outputs}))
