"""GPTQ: what GPTQModel and AutoRound decode their checkpoints to is read bit for bit; contradictions are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoint.schemes.stored import DATA, Array, assert_rows_agree, from_encoding, opened, save
from truecast.checkpoint import open_checkpoint
from truecast.checkpoint.bits import unpack
from truecast.checkpoint.encoding import Affine
from truecast.checkpoint.model import StoredTensor
from truecast.checkpoint.schemes.gptq import SCHEME, override
from truecast.errors import InputError

QUERY = "model.layers.1.self_attn.q_proj.weight"


def encoding_of(name: str, weight: str = QUERY) -> Affine:
    encoding = open_checkpoint(DATA / name).tensors[weight].encoding
    assert isinstance(encoding, Affine)
    return encoding


@pytest.mark.parametrize(("name", "middle"), [("auto-round-gptq-4bit", 8), ("auto-round-gptq-8bit-row", 128)])
def test_a_symmetric_checkpoint_has_one_zero_point(name: str, middle: int) -> None:
    assert encoding_of(name).zero == middle


def test_zero_points_of_0_that_borrow_from_their_neighbours_are_recovered() -> None:
    zero = encoding_of("gptqmodel-positive").zero
    assert not isinstance(zero, int)
    rows = zero(0, 64)
    assert (rows[::3] == 0).all()
    assert (rows[1::3] > 0).all()


def test_act_order_is_a_permutation_that_makes_groups_neighbours() -> None:
    tensor = open_checkpoint(DATA / "gptqmodel-act-order").tensors[QUERY]
    encoding, g_idx = tensor.encoding, next(part for part in tensor.parts if part.name.endswith("g_idx")).read()
    assert isinstance(encoding, Affine)
    assert encoding.order is not None
    assert sorted(encoding.order) == list(range(64))
    assert encoding.order.tolist() != list(range(64))
    np.testing.assert_array_equal(g_idx[encoding.order], np.arange(64) // encoding.group)
    assert (np.diff(encoding.order.reshape(-1, encoding.group)) > 0).all()


def test_dynamic_overrides_and_a_quantized_head_follow_the_tensors() -> None:
    tensors = open_checkpoint(DATA / "gptqmodel-dynamic-head").tensors
    assert tensors["model.layers.1.mlp.down_proj.weight"].stored_as == "GPTQ 8-bit, group 64"
    assert tensors["model.layers.0.mlp.down_proj.weight"].stored_as == "GPTQ 4-bit, group 32"
    assert tensors["model.layers.0.self_attn.k_proj.weight"].encoding is None
    assert tensors["lm_head.weight"].stored_as == "GPTQ 8-bit, group 32"
    assert tensors["lm_head.weight"].shape == (320, 64)


def test_the_patterns_of_dynamic_are_tried_in_order() -> None:
    rules = {"-:.*k_proj": {}, "+:.*proj": {"bits": 8}, ".*": {"bits": 2}}
    assert override(rules, "a.k_proj") == {}
    assert override(rules, "a.q_proj") == {"bits": 8}
    assert override(rules, "head") == {"bits": 2}
    with pytest.raises(InputError, match="cannot be read"):
        override({"+:(": {}}, "head")


def stream(codes: list[int], bits: int) -> list[int]:
    """32-bit words of codes that follow each other without gaps, the lowest bits first, as signed numbers."""
    whole = sum(code << (bits * place) for place, code in enumerate(codes))
    return signed([whole >> (32 * word) & 0xFFFFFFFF for word in range(-(-len(codes) * bits // 32))])


def planes(codes: list[int], bits: int) -> list[int]:
    """The same of codes whose bits are stored apart: of each 32 codes the lowest bits, then the next, then the last."""
    parts = {5: [(0, 4), (4, 1)], 6: [(0, 4), (4, 2)], 7: [(0, 4), (4, 2), (6, 1)], 3: [(0, 2), (2, 1)]}[bits]
    words: list[int] = []
    for block in range(0, len(codes), 32):
        for place, width in parts:
            words += stream([code >> place & ((1 << width) - 1) for code in codes[block : block + 32]], width)
    return words


def signed(words: list[int]) -> list[int]:
    return [word - (1 << 32) if word >> 31 else word for word in words]


Parts = dict[str, Array]


def parts(rows: int, width: int, group: int, bits: int, less: int = 1, seed: int = 0, pack: Any = stream) -> Any:
    """Hand-written parts of a module `p`, and the weight they mean, worked out one element at a time."""
    generator = np.random.default_rng(seed)
    groups = -(-width // group)
    codes = generator.integers(0, 1 << bits, (rows, width))
    zeros = generator.integers(less, 1 << bits, (rows, groups))
    scales = generator.uniform(-0.1, 0.1, (rows, groups)).astype(np.float16)
    weight = [
        [np.float32(codes[n, k] - zeros[n, k // group]) * np.float32(scales[n, k // group]) for k in range(width)]
        for n in range(rows)
    ]
    stored = {
        "p.qweight": np.array([pack(row.tolist(), bits) for row in codes], np.int32).T,
        "p.qzeros": np.array([pack((column - less).tolist(), bits) for column in zeros.T], np.int32),
        "p.scales": scales.T,
    }
    return stored, np.array(weight, np.float32)


def module(folder: Path, stored: Mapping[str, Array | None], model: Any = None, **stated: Any) -> StoredTensor:
    """The weight of the module `p` in a checkpoint with these tensors and this quantization_config."""
    return opened(save(folder, stored, {"quant_method": "gptq", **stated}, model=model), SCHEME).tensors["p.weight"]


PROPERTY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    blocks=st.integers(1, 3),
    height=st.integers(1, 3),
    group=st.sampled_from([8, 32, 40, 64, 128]),
    v2=st.booleans(),
)
def test_any_shape_is_decoded_element_by_element(
    bits: int, blocks: int, height: int, group: int, v2: bool, tmp_path: Path
) -> None:
    width = 32 * blocks
    group = min(group, width)
    stored, weight = parts(32 * height, width, group, bits, int(not v2), seed=width + bits)
    label = "gptq_v2" if v2 else "gptq"
    tensor = module(tmp_path, stored, group_size=group, checkpoint_format=label, sym=False)
    np.testing.assert_array_equal(tensor.read(), weight)
    np.testing.assert_array_equal(from_encoding(tensor), weight)
    assert_rows_agree(tensor)


@PROPERTY
@given(bits=st.sampled_from([3, 5, 6, 7]), blocks=st.integers(1, 3), maker=st.sampled_from(["planes", "stream"]))
def test_widths_between_the_slots_are_decoded(bits: int, blocks: int, maker: str, tmp_path: Path) -> None:
    flat = maker == "stream"
    stored, weight = parts(64, 32 * blocks, 16, bits, int(flat), bits, stream if flat else planes)
    stated = {"autoround_version": "0.16.1"} if flat else {"checkpoint_format": "gptq_p"}
    tensor = module(tmp_path, stored, group_size=16, sym=False, **stated)
    np.testing.assert_array_equal(tensor.read(), weight)
    assert_rows_agree(tensor)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_act_order_moves_columns(bits: int, tmp_path: Path) -> None:
    stored, _ = parts(32, 96, 32, bits)
    g_idx = np.random.default_rng(1).permutation(np.arange(96) // 32).astype(np.int32)
    tensor = module(tmp_path, stored | {"p.g_idx": g_idx}, group_size=32, sym=False)
    whole = [int(word) & 0xFFFFFFFF for word in stored["p.qweight"][:, 5]]
    number = sum(word << (32 * place) for place, word in enumerate(whole))
    zeros = [sum((int(w) & 0xFFFFFFFF) << (32 * i) for i, w in enumerate(row)) for row in stored["p.qzeros"]]
    mask = (1 << bits) - 1
    expected = [
        np.float32((number >> (bits * k) & mask) - (zeros[g] >> (bits * 5) & mask) - 1)
        * np.float32(stored["p.scales"][g, 5])
        for k, g in enumerate(g_idx)
    ]
    np.testing.assert_array_equal(tensor.read()[5], expected)
    assert_rows_agree(tensor)


def test_four_bit_words_are_the_encoding_as_they_are(tmp_path: Path) -> None:
    stored, _ = parts(32, 32, 32, 4)
    encoding = module(tmp_path, stored, group_size=32, sym=False).encoding
    assert isinstance(encoding, Affine)
    np.testing.assert_array_equal(encoding.codes(3, 9).view(np.int32), stored["p.qweight"].T[3:9])


def test_the_worked_example(tmp_path: Path) -> None:
    codes = [3, 14, 0, 7, 9, 1, 12, 5]
    stored = {
        "p.qweight": np.array([stream(codes, 4)] * 8, np.int32).T,
        "p.qzeros": np.array([signed([0x77777777])], np.int32),
        "p.scales": np.full((1, 8), 0.01, np.float16),
    }
    tensor = module(tmp_path, stored, bits=4)
    assert isinstance(tensor.encoding, Affine)
    assert stored["p.qweight"][0, 0] == 0x5C1970E3
    assert unpack(tensor.encoding.codes(0, 1), 4, 8).tolist() == [codes]
    np.testing.assert_allclose(tensor.read()[0], [-0.05, 0.06, -0.08, -0.01, 0.01, -0.07, 0.04, -0.03], rtol=1e-3)


def test_a_group_of_the_whole_row_with_an_idle_g_idx(tmp_path: Path) -> None:
    stored, weight = parts(32, 64, 64, 4)
    tensor = module(tmp_path, stored | {"p.g_idx": np.zeros(64, np.int32)}, group_size=-1, desc_act=True, sym=False)
    np.testing.assert_array_equal(tensor.read(), weight)
    assert isinstance(tensor.encoding, Affine)
    assert tensor.encoding.order is None


def test_rows_that_do_not_fill_the_last_word_of_zero_points(tmp_path: Path) -> None:
    stored, weight = parts(13, 32, 16, 4)
    tensor = module(tmp_path, stored, group_size=16, bits=4, sym=False)
    np.testing.assert_array_equal(tensor.read(), weight)


def test_the_groups_are_counted_where_the_configuration_is_wrong(tmp_path: Path) -> None:
    stored, weight = parts(32, 64, 32, 4)
    np.testing.assert_array_equal(module(tmp_path, stored, group_size=16, bits=8, sym=False).read(), weight)


def test_settings_beside_an_old_config_are_found(tmp_path: Path) -> None:
    stored, weight = parts(32, 64, 32, 4, less=0)
    save(tmp_path, stored, None)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "sym": false, "checkpoint_format": "gptq_v2"}')
    np.testing.assert_array_equal(open_checkpoint(tmp_path).tensors["p.weight"].read(), weight)
    (tmp_path / "quantize_config.json").write_text("{")
    with pytest.raises(InputError, match=r"quantize_config\.json is not readable"):
        open_checkpoint(tmp_path)


def symmetric(zero: int) -> Parts:
    stored, _ = parts(32, 64, 32, 4)
    return stored | {"p.qzeros": np.array([signed([zero * 0x11111111] * 4)] * 2, np.int32)}


@pytest.mark.parametrize(("label", "zero"), [("gptq", 8), ("gptq_v2", 7)])
def test_a_label_that_contradicts_symmetric_zero_points_is_refused(label: str, zero: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="correct checkpoint_format"):
        module(tmp_path, symmetric(zero), checkpoint_format=label, sym=True)


@pytest.mark.parametrize("zero", [7, 8])
def test_without_a_label_symmetric_zero_points_tell_the_convention(zero: int, tmp_path: Path) -> None:
    tensor = module(tmp_path, symmetric(zero), sym=True)
    assert isinstance(tensor.encoding, Affine)
    assert tensor.encoding.zero == 8


def test_equal_zero_points_of_an_asymmetric_module_are_kept(tmp_path: Path) -> None:
    tensor = module(tmp_path, symmetric(8), checkpoint_format="gptq", sym=False)
    assert isinstance(tensor.encoding, Affine)
    assert tensor.encoding.zero == 9


def test_a_later_group_with_another_zero_point_is_not_overlooked(tmp_path: Path) -> None:
    stored = symmetric(7)
    stored["p.qzeros"][1, 2] += 1 << 4
    tensor = module(tmp_path, stored, checkpoint_format="gptq", sym=True)
    assert isinstance(tensor.encoding, Affine)
    assert not isinstance(tensor.encoding.zero, int)
    zeros = tensor.encoding.zero(0, 32)
    assert (zeros[17, 1], (zeros == 8).sum()) == (9, zeros.size - 1)


UNEVEN = np.array([0] * 20 + [1] * 44, np.int32)
HIDDEN = {"vocab_size": 64, "hidden_size": 32}
REFUSED: dict[str, tuple[dict[str, Array | None], dict[str, Any], Any, str]] = {
    "no zero points": ({"p.qzeros": None}, {}, {}, "no p.qzeros"),
    "no scales": ({"p.scales": None}, {}, {}, "no p.scales"),
    "scales cut off": ({"p.scales": np.ones((1, 32), np.float16)}, {}, {}, "no GPTQ layout"),
    "codes cut off": ({"p.qweight": np.zeros((8, 31), np.int32)}, {}, {}, "no GPTQ layout"),
    "wide words": ({"p.qweight": np.zeros((8, 32), np.int64)}, {}, {}, "no GPTQ layout"),
    "zero points cut off": ({"p.qzeros": np.zeros((2, 1), np.int32)}, {}, {}, "no width of codes"),
    "g_idx cut off": ({"p.g_idx": np.zeros(48, np.int32)}, {}, {}, "no width of codes"),
    "uneven groups": ({"p.g_idx": UNEVEN}, {}, {}, "does not divide 64 columns into 2 groups"),
    "idle g_idx with two groups": ({"p.g_idx": np.zeros(64, np.int32)}, {}, {}, "does not divide"),
    "negative groups": ({"p.g_idx": np.arange(64, dtype=np.int32) // 32 - 1}, {}, {}, "does not divide"),
    "order without index": ({}, {"desc_act": True}, {}, "has no g_idx"),
    "Marlin": ({}, {"checkpoint_format": "marlin"}, {}, "Marlin"),
    "old Marlin": ({}, {"is_marlin_format": True}, {}, "Marlin"),
    "a newer format": ({}, {"checkpoint_format": "gptq_v3"}, {}, "gptq, gptq_v2, gptq_p"),
    "rotated": ({}, {"rotation": "hadamard"}, {}, "Hadamard"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused(case: str, tmp_path: Path) -> None:
    changes, stated, model, reason = REFUSED[case]
    stored, _ = parts(32, 64, 32, 4)
    with pytest.raises(InputError, match=reason) as caught:
        module(tmp_path, stored | changes, model, **{"group_size": 32, "sym": False, **stated})
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["model.embed_tokens", "transformer.wte", "gpt_neox.embed_in", "bert.word_embeddings"])
def test_an_embedding_is_refused(name: str, tmp_path: Path) -> None:
    stored = {key.replace("p.", f"{name}.", 1): part for key, part in parts(32, 64, 32, 4)[0].items()}
    folder = save(tmp_path, stored, {"quant_method": "gptq", "group_size": 32, "sym": False}, model=HIDDEN)
    with pytest.raises(InputError, match="groups along the vocabulary"):
        opened(folder, SCHEME)


def test_a_projection_as_wide_as_the_vocabulary_is_long_is_none(tmp_path: Path) -> None:
    stored, values = parts(32, 64, 32, 4)
    read = module(tmp_path, stored, HIDDEN, group_size=32, sym=False).read()
    np.testing.assert_array_equal(read, module(tmp_path, stored, group_size=32, sym=False).read())
    assert read.shape == values.shape


def test_a_marlin_file_of_autogptq_is_refused(tmp_path: Path) -> None:
    stored = {"p.B": np.zeros((4, 128), np.int32), "p.s": np.ones((1, 64), np.float16)}
    with pytest.raises(InputError, match="Marlin"):
        module(tmp_path, stored)


def test_groups_that_no_size_gives_are_refused(tmp_path: Path) -> None:
    stored, _ = parts(32, 64, 24, 4)
    with pytest.raises(InputError, match="3 groups for 64 columns"):
        module(tmp_path, stored, group_size=32, sym=False)


def test_five_bits_of_an_unknown_writer_are_refused(tmp_path: Path) -> None:
    stored, _ = parts(32, 64, 32, 5)
    with pytest.raises(InputError, match="5 bits"):
        module(tmp_path, stored, group_size=32, sym=False)
