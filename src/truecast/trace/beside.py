"""What a text model's forward() takes beside the tokens: inputs that the processor of its kind always makes.

| input | models | each token has | whole numbers below |
|---|---|---|---|
| `bbox` | LayoutLM, LiLT; BROS, as floats | a box: x0, y0, x1, y1 | `max_2d_position_embeddings` |
| `xpath_tags_seq`, `xpath_subs_seq` | MarkupLM | `max_depth` steps to its place in a page | the units of each |
| `input_shape_ids`, `input_pronunciation_ids` | RoCBert | one number | the vocabulary of each |
| `task_type_ids` | ERNIE | one number | `task_type_vocab_size` |

Everything else that forward() takes and the graph does not is named to the user (`left_out`): entities of LUKE, whose
tokenizer makes none where none are given, a global attention, languages.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from truecast.trace.author import AuthorModule, Axis, InputSpec


@dataclass(frozen=True)
class _Beside:
    """The settings of an input: what bounds it, how many numbers a token has, and without which it is not used."""

    bound: str
    width: str | int = 0
    switch: str = ""


BOX = 4
INPUTS: Mapping[str, _Beside] = {
    "bbox": _Beside("max_2d_position_embeddings", BOX),
    "xpath_tags_seq": _Beside("max_xpath_tag_unit_embeddings", "max_depth"),
    "xpath_subs_seq": _Beside("max_xpath_subs_unit_embeddings", "max_depth"),
    "input_shape_ids": _Beside("shape_vocab_size", switch="enable_shape"),
    "input_pronunciation_ids": _Beside("pronunciation_vocab_size", switch="enable_pronunciation"),
    "task_type_ids": _Beside("task_type_vocab_size", switch="use_task_id"),
}
NOT_DATA = re.compile(
    r"(.*_)?labels?|(start|end)_positions|.*embeds|.*head_mask|position_ids|.*past_key_values|(en|de)coder_.*"
    r"|logits_to_keep|cache.*|mems|attention_mask|bool_masked_pos|mask_time_indices|noise"
    r"|perm_mask|target_mapping|input_mask|input_ids"
)
"""Arguments for training and for generation, and those that stand for others or are made of them."""


def inputs_beside(
    module: nn.Module, axes: Mapping[int, Axis], shape: tuple[int, int], settings: Mapping[str, Any]
) -> Iterator[InputSpec]:
    """The further inputs of a text model, [batch, tokens] or [batch, tokens, numbers of each].

    Args:
        module: whose forward() takes them.
        axes: those of the tokens.
        shape: of the example's tokens.
        settings: the configuration.
    """
    taken = inspect.signature(module.forward).parameters
    for name, beside in INPUTS.items():
        if name in taken and (not beside.switch or settings.get(beside.switch)):
            width = beside.width if isinstance(beside.width, int) else int(settings[beside.width])
            high = settings.get(beside.bound)
            example = torch.zeros(*shape, *[width] * bool(width), dtype=torch.long if high else torch.float32)
            yield InputSpec(name, example, axes, high, boxes=width == BOX)


def left_out(author: AuthorModule) -> list[str]:
    """Tensors that forward() takes for its task by the author's own account, and the graph does not."""
    given = {spec.name for spec in author.inputs}
    config = author.config or {}
    return [
        name
        for name, parameter in inspect.signature(author.module.forward).parameters.items()
        if "Tensor" in str(parameter.annotation)
        and name not in given
        and not NOT_DATA.fullmatch(name)
        and not (name == "token_type_ids" and config.get("type_vocab_size", 2) < 2)
        and not ((beside := INPUTS.get(name)) and beside.switch and not config.get(beside.switch))
    ]
