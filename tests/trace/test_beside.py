"""Inputs of text models beside the tokens: those of their kinds are inputs of the graph, all others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import truecast
from tests.conformance.encoders import BY_NAME, ROBERTA, TEXT, encoder
from tests.tiny import Case, tiny_checkpoint
from truecast.artifact import read_manifest
from truecast.proof.module_points import module_grid
from truecast.trace.author import AuthorModule
from truecast.trace.beside import left_out
from truecast.trace.opening import ModuleSource, open_author

BOXES: dict[str, Any] = TEXT | {"max_2d_position_embeddings": 100}
STEPS = {"max_depth": 6, "max_xpath_tag_unit_embeddings": 20, "max_xpath_subs_unit_embeddings": 30}
SHAPES = {"shape_vocab_size": 30, "shape_embed_dim": 16, "pronunciation_vocab_size": 20}
ENTITIES = {"entity_vocab_size": 20, "entity_emb_size": 16}
LAYOUTLM = encoder("layoutlm", "LayoutLM", "ForTokenClassification", BOXES)
LUKE = encoder("luke", "Luke", "Model", ROBERTA, **ENTITIES)


def author(case: Case, folder: Path) -> AuthorModule:
    tiny_checkpoint(case, folder)
    return open_author(ModuleSource(folder))[0]


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        (LAYOUTLM, {"bbox": (4, 100)}),
        (encoder("bros", "Bros", "Model", TEXT), {"bbox": (4, None)}),
        (
            encoder("markuplm", "MarkupLM", "Model", TEXT, xpath_unit_hidden_size=8, **STEPS),
            {"xpath_tags_seq": (6, 20), "xpath_subs_seq": (6, 30)},
        ),
        (
            encoder("rocbert", "RoCBert", "Model", TEXT, pronunciation_embed_dim=16, **SHAPES),
            {"input_shape_ids": (0, 30), "input_pronunciation_ids": (0, 20)},
        ),
        (encoder("ernie", "Ernie", "Model", TEXT, use_task_id=True, task_type_vocab_size=3), {"task_type_ids": (0, 3)}),
        (encoder("ernie_plain", "Ernie", "Model", TEXT, use_task_id=False), {}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_the_processor_of_a_kind_makes_is_an_input(
    case: Case, shapes: dict[str, tuple[int, int | None]], tmp_path: Path
) -> None:
    found = author(case, tmp_path)
    tokens, beside = found.inputs[:3], found.inputs[3:]
    assert [spec.name for spec in tokens] == ["input_ids", "attention_mask", "token_type_ids"]
    widths = {spec.name: spec.example.shape[2] if spec.example.ndim > 2 else 0 for spec in beside}
    assert {spec.name: (widths[spec.name], spec.high) for spec in beside} == shapes
    assert all((spec.example.dtype == torch.long) == bool(spec.high) for spec in beside)
    assert not left_out(found)


def test_boxes_have_their_corners_in_order_at_every_point(tmp_path: Path) -> None:
    for point in module_grid(author(LAYOUTLM, tmp_path)).points:
        boxes = point.tensors[3]
        assert torch.all(boxes[..., :2] <= boxes[..., 2:])


def test_a_model_with_boxes_is_proven(tmp_path: Path) -> None:
    tiny_checkpoint(LAYOUTLM, tmp_path / "source")
    made = truecast.export(tmp_path / "source", tmp_path / "out", precision="fp32")
    assert [tensor.name for tensor in made.manifest.graph.inputs][3:] == ["bbox"]
    assert not made.manifest.notices


def test_inputs_that_the_graph_has_not_are_a_notice(tmp_path: Path) -> None:
    tiny_checkpoint(LUKE, tmp_path / "source")
    truecast.export(tmp_path / "source", tmp_path / "out", precision="fp32", verify=False)
    names = "entity_ids, entity_attention_mask, entity_token_type_ids, entity_position_ids"
    assert read_manifest(tmp_path / "out").notices == [
        f"LukeModel takes {names} as well, for which the graph has no input; it gives what the author's code gives "
        "without."
    ]


class Trained(nn.Module):
    """Takes everything that is for training and generation, and one tensor whose name only begins so."""

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor,
        start_positions: Tensor,
        inputs_embeds: Tensor,
        head_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Tensor,
        encoder_hidden_states: Tensor,
        logits_to_keep: Tensor,
        cache_position: Tensor,
        mems: Tensor,
        attention_mask: Tensor,
        bool_masked_pos: Tensor,
        mask_time_indices: Tensor,
        noise: Tensor,
        perm_mask: Tensor,
        target_mapping: Tensor,
        input_mask: Tensor,
        label_boxes: Tensor,
        return_dict: bool,
    ) -> None: ...


def test_an_argument_is_for_training_by_its_whole_name() -> None:
    assert left_out(AuthorModule(Trained(), ())) == ["label_boxes"]


@pytest.mark.parametrize(
    "name", ["bert", "roberta_sequence", "modernbert_masked", "vit", "wav2vec2_ctc", "qwen3_rerank"]
)
def test_arguments_for_training_and_generation_are_no_inputs(name: str, tmp_path: Path) -> None:
    assert left_out(author(BY_NAME[name], tmp_path)) == []
