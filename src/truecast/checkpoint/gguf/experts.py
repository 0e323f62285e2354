"""What a GGUF file says about its experts: how many there are, how wide, and how their results are weighed.

Data flow: metadata and the shape of the first layer's stack → the settings that mixtures of experts share.

The matrices themselves need nothing here: llama.cpp stacks them [experts, rows, width], so each expert is a run of
whole blocks, and `names` names it as the transformers checkpoint does.
"""

from __future__ import annotations

from typing import Any

from gguf.constants import ExpertGatingFuncType

from truecast.checkpoint.gguf.metadata import Facts
from truecast.errors import InputError

STACK = "blk.0.ffn_gate_exps.weight"
"""[experts, inner, hidden]"""
NEUTRAL = {
    "expert_gating_func": (0, int(ExpertGatingFuncType.SOFTMAX)),
    "expert_weights_scale": (0.0, 1.0),
    "expert_group_count": (0, 1),
}
"""Metadata that may ask for another way to choose and weigh experts, with the values that ask for none."""


def experts(facts: Facts, width: str) -> dict[str, Any]:
    """The settings of a mixture of experts that chooses by softmax.

    Args:
        facts: of a file whose `expert_count` is not 0.
        width: the name of the setting for the inner width of one expert.

    Raises:
        InputError: the file states another number of experts than it holds, or chooses them in another way.
    """
    path, count = facts.container.path, facts.size("expert_count")
    stacked, inner = shape_of(facts, STACK)[:2]
    if count != stacked:
        raise InputError(f"{path} states {count} experts and holds {stacked} in {STACK}; download it again.")
    for key, neutral in NEUTRAL.items():
        if facts.number(key, neutral[0]) not in neutral:
            raise unknown_weights(facts, key)
    return {
        "num_experts": count,
        "num_experts_per_tok": facts.size("expert_used_count"),
        width: inner,
    }


def normalized(facts: Facts, default: bool) -> bool:
    """Whether the weights of the chosen experts add up to one; `default` is what llama.cpp does by itself."""
    return bool(facts.number("expert_weights_norm", default))


def unknown_weights(facts: Facts, key: str) -> InputError:
    """The error for metadata that transformers' model has no setting for."""
    return InputError(
        f"{facts.container.path} has {facts.get(key)} as {facts.architecture}.{key}, a way to weigh experts that "
        "transformers' model does not have; convert the original Hugging Face folder instead."
    )


def shape_of(facts: Facts, tensor: str) -> tuple[int, ...]:
    """The shape of a tensor that must be there, and a matrix or a stack of them.

    Raises:
        InputError: it is not.
    """
    entry = facts.container.tensors.get(tensor)
    if entry is None or len(entry.shape) < 2:
        raise InputError(
            f"{facts.container.path} is a mixture of experts without the matrices {tensor}; convert the model again "
            "with a current llama.cpp."
        )
    return entry.shape
