"""The inputs of a task's model: sizes of what it sees, and what it hears only by its feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from tests.conformance.encoders import PICTURE
from tests.tiny import Case, tiny_checkpoint
from truecast.dialects import dialect
from truecast.errors import InputError
from truecast.proof.source.loading import load_author
from truecast.trace.module import trace_module
from truecast.trace.opening import ModuleSource, open_author

SEES: dict[str, Any] = {**PICTURE, "patch_size": 4, "image_size": 20, "num_channels": 1}
READS = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
SWIN = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "window_size": 4,
    "depths": [1, 1, 1, 1],
    "num_heads": [2, 2, 2, 2],
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
SEGMENTS = {
    **dict.fromkeys(("hidden_size", "feature_size", "mask_feature_size", "encoder_feedforward_dim"), 32),
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 5,
}


CLIP = {"vision_config": SEES, "text_config": READS, "projection_dim": 16}
CASES = [
    (Case("clip", "CLIPConfig", CLIP, model_class="CLIPForImageClassification"), [1, 20, 20]),
    (
        Case("swin", "Mask2FormerConfig", {"backbone_config": SWIN, **SEGMENTS}, model_class="Mask2FormerModel"),
        [3, 32, 32],
    ),
]


@pytest.mark.parametrize(("case", "shape"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_a_picture_has_the_size_and_the_channels_of_the_part_that_sees(
    case: Case, shape: list[int], tmp_path: Path
) -> None:
    tiny_checkpoint(case, tmp_path)
    author, _ = open_author(ModuleSource(tmp_path))
    (pixels,) = author.inputs
    assert list(pixels.example.shape[1:]) == shape


def test_a_model_of_text_and_pictures_names_what_is_left_out(tmp_path: Path) -> None:
    tiny_checkpoint(Case("clip", "CLIPConfig", CLIP, model_class="CLIPModel"), tmp_path)
    author, _ = open_author(ModuleSource(tmp_path))
    with pytest.raises(InputError, match=r"it takes pixel_values beside input_ids.*; save the part for one of them"):
        trace_module(author, dialect("ort"))


def test_a_model_that_keeps_states_gives_none_of_them(tmp_path: Path) -> None:
    small = {"vocab_size": 320, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "mem_len": 6}
    tiny_checkpoint(Case("xlnet", "XLNetConfig", small, model_class="XLNetModel"), tmp_path)
    author, checkpoint = open_author(ModuleSource(tmp_path))
    assert set(author([spec.example for spec in author.inputs])) == {"last_hidden_state"}
    assert isinstance(author.module, PreTrainedModel)
    assert not load_author(author.module, checkpoint).model.config.use_mems_eval


LASR = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_mel_bins": 16,
    "subsampling_conv_channels": 16,
    "max_position_embeddings": 64,
}


def test_a_model_of_sound_without_its_feature_extractor_asks_for_it(tmp_path: Path) -> None:
    case = Case("lasr", "LasrCTCConfig", {"encoder_config": LASR, "vocab_size": 32}, model_class="LasrForCTC")
    tiny_checkpoint(case, tmp_path)
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json, which says what LasrForCTC takes"):
        open_author(ModuleSource(tmp_path))
