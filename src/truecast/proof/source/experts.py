"""Experts that a quantizer stored one by one, as the stacks that the author's class has.

Tools that quantize linear layers (llm-compressor, for one) write `experts.3.up_proj.weight` where the class has
`experts.gate_up_proj`, [experts, out, in]; transformers puts them together for some classes, and this for the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from truecast.proof.source.definitions import Decoded

PARTS: Mapping[str, Sequence[Sequence[str]]] = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "down_proj": (("down_proj",), ("w2",)),
}
"""What a stack is made of in files, in either of the usual spellings (Llama's, Mixtral's): rows of one below those of
the other."""


def stacked(state: Mapping[str, Decoded], stacks: Mapping[str, int]) -> dict[str, Decoded]:
    """The same tensors, those of single experts as one of each of `stacks`, a name and how many experts it has.

    Nothing where there are no experts of any of them.
    """
    made, used = dict[str, Decoded](), set[str]()
    for name, count in stacks.items():
        owner, _, product = name.rpartition(".")
        for parts in PARTS.get(product, ()):
            rows = [[f"{owner}.{expert}.{part}.weight" for part in parts] for expert in range(count)]
            names = {part for row in rows for part in row}
            if names <= state.keys():
                made[name] = Decoded(partial(_stack, state, rows))
                used |= names
    return {name: tensor for name, tensor in state.items() if name not in used} | made if made else {}


def _stack(state: Mapping[str, Decoded], rows: Sequence[Sequence[str]]) -> Tensor:
    return torch.stack([torch.cat([state[name][...] for name in row]) for row in rows])
